"""Whole networks through accelerate, on the Triton kernels."""

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

import dsn_models
from dsn_models.layer_skippable import PathHead
from tests.networks import make_images, random_gates, randomise

SHAPES = {  # small: each step of a product takes the interpreter milliseconds
    "dsn-navon": {"image_size": 8, "block_layers": (2, 1)},
    "concat-40": {"image_size": 8, "block_layers": (2, 1)},
    "concat-bc-100": {"image_size": 8, "block_layers": (2, 2)},
    "add-166": {"image_size": 8, "block_layers": (2, 2), "growth_rate": 4, "stage_widths": (8, 16)},
    "dsn-121": {"image_size": 32, "block_layers": (1, 2), "growth_rate": 8},
    "lsn-concat-bc-100": {"image_size": 4, "block_layers": (1, 2)},
}


def make_model(name, **overrides):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name, **{**SHAPES[name], **overrides}))
    for module in model.modules():
        if isinstance(module, PathHead):  # its path begins at zero
            torch.nn.init.normal_(module.path.weight)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_reference(place, name, dtype):
    model = make_model(name)
    check_network(place, model, accelerate(place, model, dtype), make_images(model, 2), dtype)


@pytest.mark.parametrize(
    "name, density",
    [("concat-bc-100", 0.0), ("concat-bc-100", 0.5), ("concat-bc-100", 1.0), ("lsn-concat-bc-100", 0.5)],
)
def test_forced_gates(place, name, density):
    model = make_model(name)
    fast = accelerate(place, model, torch.float16)
    check_network(place, model, fast, make_images(model, 2), torch.float16, random_gates(fast, 2, density))


def test_thresholds(place):
    check_thresholds(place, make_model("concat-bc-100"))


def test_empty_batch(place):
    check_empty_batch(place, make_model("concat-bc-100"))


@pytest.mark.parametrize("name", ["concat-bc-100", "add-166"])
def test_a_sample_does_not_depend_on_its_batch(place, name):
    check_samples_alone(place, make_model(name), 2)


def test_padding_is_neither_read_nor_run(place):
    check_padding(place, make_model("concat-bc-100"))


def test_a_users_own_network(place):
    check_users_own_network(place)


def test_compiles_without_a_break(place):
    model = make_model("concat-bc-100", block_layers=(1, 1))
    fast, x = accelerate(place, model), make_images(model, 2).to(place.device)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fast(x))
