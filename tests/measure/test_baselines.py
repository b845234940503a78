"""Every baseline builds, agrees with eager, and tells why where it does not."""

import builtins

import pytest
import torch
from torch import nn

import dsn_models
from dsn_kernels.measure import baselines


class Tiny(nn.Module):
    """Two outputs like a dual network, and few enough operations to compile within seconds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        pooled = self.conv(images).relu().mean((2, 3))
        return pooled, self.head(pooled)


@pytest.fixture(scope="module")
def dense():
    torch.manual_seed(0)
    return dsn_models.create("concat-bc-100", block_layers=(1, 1, 2)).eval().dense_equivalent()


@pytest.mark.parametrize("name", ["eager", "channels_last", "onnxruntime", "openvino"])
def test_agrees_with_eager_on_a_dual_network(name, dense):
    if name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    images = torch.randn(2, 3, 32, 32)
    call = baselines.build(name, dense, images)
    with torch.inference_mode():
        other = torch.randn(2, 3, 32, 32)  # not what it was built with
        got, expected = call(other), dense(other)
    assert baselines.relative_error(got, expected) < 1e-4
    assert [tuple(y.shape) for y in got] == [(2, 20), (2, 100)]


@pytest.mark.long
@pytest.mark.parametrize("name", ["compile", "freeze"])
def test_compiles(name):
    torch.manual_seed(0)
    model, images = Tiny().eval(), torch.randn(2, 1, 8, 8)
    call = baselines.build(name, model, images)
    with torch.inference_mode():
        assert baselines.relative_error(call(images), model(images)) < 1e-4
    torch._dynamo.reset()


def test_relative_error_is_the_largest_of_the_outputs():
    got = (torch.tensor([1.0, 2.0]), torch.tensor([10.0]))
    expected = (torch.tensor([1.0, 2.5]), torch.tensor([11.0]))
    assert baselines.relative_error(got, expected) == pytest.approx(0.5 / 2.5)


def test_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without_openvino(name, *args, **kwargs):
        if name == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name="openvino")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_openvino)
    calls, missing = baselines.build_all(["eager", "openvino"], Tiny().eval(), torch.randn(1, 1, 8, 8))
    assert list(calls) == ["eager"]
    assert missing == {"openvino": "not installed: pip install openvino"}


def test_failure_and_wrong_answer_are_reasons(monkeypatch):
    def fails(dense, images):
        raise RuntimeError("no such luck\nsecond line")

    monkeypatch.setitem(baselines.BASELINES, "fails", fails)
    monkeypatch.setitem(baselines.BASELINES, "wrong", lambda dense, images: lambda x: tuple(y + 1 for y in dense(x)))
    monkeypatch.setitem(
        baselines.BASELINES, "nan", lambda dense, images: lambda x: tuple(y * torch.nan for y in dense(x))
    )
    calls, missing = baselines.build_all(["fails", "wrong", "nan"], Tiny().eval(), torch.randn(1, 1, 8, 8))
    assert calls == {}
    assert missing["fails"] == "RuntimeError: no such luck"
    assert missing["wrong"].startswith("wrong answer") and missing["nan"].startswith("wrong answer")
