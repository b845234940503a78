"""What is missing for the Triton kernels is said in one line; the other backends stay."""

import importlib.metadata

import pytest
import torch

import dsn_kernels
from dsn_models.errors import UserError
from tests.networks import make_images, make_small


def refusal(**options):
    with pytest.raises(UserError) as error:
        dsn_kernels.accelerate(make_small("concat-bc-100"), backend="triton", **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def installed(monkeypatch, version):
    def find(name):
        if version is None or name != "triton":
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", find)


def others_work():
    model = make_small("concat-bc-100")
    for backend in ("auto", "cpu", "reference"):
        assert dsn_kernels.accelerate(model, backend=backend)(make_images(model, 1))[0].shape == (1, 20)


def test_missing(monkeypatch):
    installed(monkeypatch, None)
    assert refusal().startswith("backend 'triton' needs the package triton, 3.6 or later: pip install")
    others_work()


def test_too_old(monkeypatch):
    installed(monkeypatch, "3.1.0")
    assert refusal() == "backend 'triton' needs triton 3.6 or later; 3.1.0 is installed"
    others_work()


def test_the_interpreter_is_wrong_for_bfloat16(place):
    if place.device != "cpu":
        pytest.skip("there is a GPU")
    assert "torch.bfloat16, which Triton's interpreter gets wrong" in refusal(dtype=torch.bfloat16)


def test_graph_needs_a_gpu(place):
    if place.device != "cpu":
        pytest.skip("there is a GPU")
    assert refusal(cuda_graph=True) == "cuda_graph is for a GPU; the device is 'cpu'"


def test_no_device(place, subprocess_python):
    if place.device != "cpu":
        pytest.skip("there is a GPU")
    code = """
        import torch, dsn_kernels, dsn_models
        from dsn_models.errors import UserError
        model = dsn_models.create("concat-bc-100", block_layers=(1, 1, 1), image_size=8)
        for device in (None, "cpu"):
            try:
                dsn_kernels.accelerate(model, backend="triton", device=device)
            except UserError as error:
                print(error, end=" | ")
        print(dsn_kernels.accelerate(model)(torch.zeros(1, 3, 8, 8))[0].shape[1])
    """
    expect = (
        "backend 'triton' finds no device: torch sees no NVIDIA or AMD GPU | device is 'cpu'; the backend 'triton' "
        "runs on 'cuda', on 'cpu' only with TRITON_INTERPRET=1 | 20"
    )
    subprocess_python(code, expect, TRITON_INTERPRET="0")
