"""The table behind ``backend="auto"``."""

import json

import pytest
import torch

import dsn_kernels
from dsn_kernels import choice
from dsn_models.errors import UserError

GPU = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU by name, with the backends that ``usable`` says."""

    def having(usable):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")
        reasons = {name: "" if name in usable else f"no {name}" for name in ("cuda", "triton")}
        monkeypatch.setattr(choice, "candidates", lambda device, dtype: reasons)

    return having


def table(**ms):
    return {"GPU X": {"float16": {"Head": ms}}}


def test_the_quickest_that_was_measured(gpu):
    gpu(["cuda", "triton"])
    taken = choice.choose("Head", GPU, torch.float16, table(cuda=2.5, triton=1.5))
    assert taken == choice.Choice("triton", "cuda 2.5 ms, triton 1.5 ms")
    assert choice.choose("Head", GPU, torch.float16, table(cuda=1.0, triton=1.5)).backend == "cuda"


@pytest.mark.parametrize("known", [{}, table(triton=1.0), {"GPU Y": {"float16": {"Head": {"cuda": 2, "triton": 1}}}}])
def test_not_measured(gpu, known):
    gpu(["cuda", "triton"])
    taken = choice.choose("Head", GPU, torch.float16, known)
    assert taken == choice.Choice("cuda", "not measured on GPU X: dsn bench --tune")


def test_one_or_none(gpu):
    gpu(["triton"])
    assert choice.choose("Head", GPU, torch.float16, table(cuda=1, triton=9)) == choice.Choice("triton", "the only one")
    gpu([])
    with pytest.raises(UserError, match="no cuda; no triton"):
        choice.choose("Head", GPU, torch.float16, {})


def test_the_shipped_table_claims_nothing():
    assert choice.read_table(choice.own_table_path().parent / "missing.json") == {}
    path = dsn_kernels.__path__[0] + "/assets/backends.json"
    document = json.loads(open(path).read())
    assert document["devices"] == {} and "No GPU has been measured" in document["note"]


def test_own_times_are_added_and_win(monkeypatch, tmp_path):
    monkeypatch.setenv("DSN_BACKENDS", str(tmp_path / "own" / "backends.json"))
    choice.add_times("GPU X", "float16", {"Head": {"cuda": 2.0, "triton": 1.0}})
    choice.add_times("GPU X", "float16", {"SkipNet": {"triton": 3.0}})
    assert choice.times() == {"GPU X": {"float16": {"Head": {"cuda": 2.0, "triton": 1.0}, "SkipNet": {"triton": 3.0}}}}


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2, "devices": {}}', '{"schema": 1}'])
def test_a_broken_table_is_named(monkeypatch, tmp_path, text):
    path = tmp_path / "backends.json"
    path.write_text(text)
    monkeypatch.setenv("DSN_BACKENDS", str(path))
    with pytest.raises(UserError, match="is not a table of backends .* delete it") as error:
        choice.times()
    assert "\n" not in str(error.value)


def test_tune_needs_a_gpu():
    from dsn_kernels.cli.tune import tune_backends

    with pytest.raises(UserError, match="--tune times the backends of a GPU: expected --device cuda"):
        tune_backends("cpu", torch.float32, 0.1, None)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="this machine has 0 CUDA devices"):
            tune_backends("cuda", torch.float32, 0.1, None)


@pytest.mark.parametrize("operator", choice.OPERATORS)
def test_every_operator_has_an_example(operator):
    from dsn_kernels.measure.tune import example

    module, x = example(operator)
    assert type(module).__name__ == operator
    if operator in ("Transition", "Head"):
        assert module(x[:1]).shape[0] == 1
