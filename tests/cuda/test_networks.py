"""Whole networks through accelerate, on the CUDA kernels."""

import pytest
import torch
from device_checks import (
    accelerate,
    check_empty_batch,
    check_network,
    check_padding,
    check_samples_alone,
    check_thresholds,
    check_users_own_network,
)

import dsn_kernels
import dsn_models
from dsn_models.errors import UserError
from tests.networks import DUAL, SMALL, make_images, random_gates, randomise


def make_model(name, **overrides):
    torch.manual_seed(0)
    return randomise(dsn_models.create(name, **{**SMALL[name], **overrides}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DUAL)
def test_equals_reference(place, name, dtype):
    place.seeded(2)
    model = make_model(name)
    check_network(place, model, accelerate(place, model, dtype), make_images(model, 3), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("density", [None, 0.0, 0.5, 1.0])
def test_the_path_shapes_the_features(place, density, dtype):
    place.seeded(3)
    model = make_model("lsn-concat-bc-100")
    fast = accelerate(place, model, dtype)
    forced = None if density is None else random_gates(fast, 3, density)
    check_network(place, model, fast, make_images(model, 3), dtype, forced)


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_forced_gates(place, density):
    model = make_model("concat-bc-100")
    fast = accelerate(place, model, torch.float16)
    check_network(place, model, fast, make_images(model, 3), torch.float16, random_gates(fast, 3, density))


def test_thresholds(place):
    check_thresholds(place, make_model("concat-bc-100"))


def test_empty_batch(place):
    check_empty_batch(place, make_model("concat-bc-100"))


def test_a_sample_does_not_depend_on_its_batch(place):
    check_samples_alone(place, make_model("concat-bc-100"), 5)


def test_padding_is_neither_read_nor_run(place):
    check_padding(place, make_model("concat-bc-100"))


def test_a_users_own_network(place):
    check_users_own_network(place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "simt", "dtype": torch.float64},
            "the GPU kernels serve torch.float32, torch.float16, torch.bfloat",
        ),
        ({"backend": "simt", "cuda_graph": True}, "cuda_graph is for a GPU; the device is 'cpu'"),
        ({"backend": "cpu", "device": "cuda"}, "device is 'cuda'; the backend 'cpu' runs on"),
        ({"device": "tpu"}, "device is 'tpu'; expected 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message) as error:
        dsn_kernels.accelerate(make_model("concat-bc-100"), **options)
    assert "\n" not in str(error.value)


def test_no_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="backend 'cuda' (is not in this build|finds no device)"):
        dsn_kernels.accelerate(make_model("concat-bc-100"), device="cuda")
