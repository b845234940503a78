"""The table behind ``backend="auto"``."""

import json
import sys

import pytest
import torch

import dsn_kernels
import dsn_kernels.accelerate  # which the function of that name hides
from dsn_kernels import choice
from dsn_models.errors import UserError

accelerating = sys.modules["dsn_kernels.accelerate"]
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


@pytest.mark.parametrize("usable, taken", [(["cuda", "triton"], "triton"), (["triton"], "triton"), (["cuda"], "cuda")])
def test_every_operator_is_accelerated_by_the_backend_that_is_taken(gpu, monkeypatch, usable, taken):
    """Also where the table prefers a backend that cannot serve here."""
    gpu(usable)
    measured = {operator: {"cuda": 2.0, "triton": 1.0} for operator in choice.OPERATORS}
    monkeypatch.setattr(choice, "times", lambda: {"GPU X": {"float16": measured}})
    makers = accelerating._chosen_makers(torch.nn.Identity(), torch.float16, GPU, False)
    assert set(choice.OPERATORS) == {cls.__name__ for cls in makers}
    for make in makers.values():
        assert make.keywords["target"].backend == taken


def test_info_says_what_is_taken(gpu, monkeypatch):
    from dsn_kernels.cli.info import _choices

    gpu(["cuda", "triton"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choice, "times", lambda: table(cuda=2.5, triton=1.5))
    found = _choices()
    assert found["Head, float16"] == "triton (cuda 2.5 ms, triton 1.5 ms)"
    assert found["Head, float32"] == "cuda (not measured on GPU X: dsn bench --tune)"
    gpu([])
    assert _choices()["Head, float16"] == "no cuda; no triton"


def test_tune_times_what_serves_and_keeps_it(gpu, monkeypatch, tmp_path, capsys):
    from dsn_kernels.cli import tune as command
    from dsn_kernels.tuning import tune as measuring

    asked = []

    def accelerate(model, dtype, backend, device):
        asked.append((type(model).__name__, backend))
        return model

    gpu(["cuda", "triton"])
    monkeypatch.setenv("DSN_BACKENDS", str(tmp_path / "backends.json"))
    monkeypatch.setattr(choice, "OPERATORS", ("Transition", "Head"))
    monkeypatch.setattr(measuring, "_BATCH", 1)
    monkeypatch.setattr(measuring, "accelerate", accelerate)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where: tensor)
    command.tune_backends("cuda", torch.float16, 0.01, None)
    assert asked == [(name, backend) for name in ("Transition", "Head") for backend in ("cuda", "triton")]
    kept = choice.times()["GPU X"]["float16"]
    assert {name: set(ms) for name, ms in kept.items()} == dict.fromkeys(("Transition", "Head"), {"cuda", "triton"})
    assert choice.choose("Head", GPU, torch.float16).backend == min(kept["Head"], key=kept["Head"].get)
    assert "auto takes" in capsys.readouterr().out


def test_tune_needs_a_gpu():
    from dsn_kernels.cli.tune import tune_backends

    with pytest.raises(UserError, match="--tune times the backends of a GPU: expected --device cuda"):
        tune_backends("cpu", torch.float32, 0.1, None)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="this machine has 0 CUDA devices"):
            tune_backends("cuda", torch.float32, 0.1, None)


IN_EVERY_RUN = ("SkipNet", "BasicUnit", "SkipDenseBlock", "Transition", "Head")


@pytest.mark.long
@pytest.mark.parametrize(
    "operator", [pytest.param(o, marks=() if o in IN_EVERY_RUN else pytest.mark.slow) for o in choice.OPERATORS]
)
def test_every_operator_has_an_example(operator):
    from dsn_kernels.tuning.tune import example

    module, x = example(operator)
    assert type(module).__name__ == operator
    if operator in ("Transition", "Head"):
        assert module(x[:1]).shape[0] == 1
