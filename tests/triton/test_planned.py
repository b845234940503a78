"""Accelerated networks that are not dual skipping ones on the Triton kernels, against float64."""

import pytest
import torch
from device_checks import accelerate, check_network

import dsn_models
from tests.networks import SMALL, make_images, make_planned, random_gates

TINY = {"stage_units": (1, 2), "stage_widths": (8, 16), "stem_width": 8, "image_size": 8}
MODELS = {
    "resnet-18": {},
    "resnet-20": TINY,
    "resnet-164": {"stage_units": (1, 1), "stage_widths": (16, 32), "image_size": 7},
    "skipnet-38-rnn": {**TINY, "stage_units": (2, 1)},
    "skipnet-32-rnn": {**TINY, "image_size": 7},
    "skipnet-38-ff": TINY,
    "skipnet-110-ff": {**TINY, "image_size": 11},
    "skipnet-18-rnn-imagenet": {"stage_units": (1, 1), "stage_widths": (16, 32), "stem_width": 16, "image_size": 33},
    "gaternet-resnet-20": {"backbone_options": {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8}},
    "gaternet-resnet-164": {"backbone_options": {"stage_units": (1, 1), "stage_widths": (16, 32)}, "gated": "all"},
    "gunn-15": {"widths": (8, 12), "segments": (2, (1, 5, 6)), "image_size": 6},
    "sunn-15": {"widths": (8,), "segments": (2,), "image_size": 6},
    "gunn-24": {"widths": (8,), "segments": (2,), "image_size": 6},
    "gunn-18": {"widths": (8, 12), "segments": (2, 3), "image_size": 32, "classes": 5},
}
# Any window and pool, concatenations, heads and transitions whose input masks chose.
GENERAL = [
    ("lenet", torch.float32),
    ("densenet", torch.float16),
    ("shake-shake", torch.float32),
    ("inception", torch.float16),
    ("gaternet-shake", torch.float16),
    ("gaternet-densenet", torch.float32),
    ("gaternet-densenet-last", torch.float16),
    ("gaternet-inception", torch.float32),
    ("gaternet-inception-last", torch.float16),
]


def make(name):
    options = dict(MODELS[name])
    if name.startswith("gaternet"):
        options = {"image_size": 8, **options}
    torch.manual_seed(0)
    model = dsn_models.create(name, **{**SMALL.get(name, {}), **options}).train()
    with torch.no_grad():  # batch norms that have seen data
        model(make_images(model, 4))
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_reference(place, name, dtype):
    model = make(name)
    fast = accelerate(place, model, dtype)
    forced = random_gates(fast, 3) if dtype == torch.float16 else None
    check_network(place, model, fast, make_images(model, 3), dtype, forced or None)


@pytest.mark.parametrize("name, dtype", GENERAL, ids=lambda value: str(value))
def test_any_window_and_concatenation(place, name, dtype):
    model = make_planned(name)
    fast = accelerate(place, model, dtype)
    forced = random_gates(fast, 2) if dtype == torch.float16 else None
    check_network(place, model, fast, make_images(model, 2), dtype, forced or None)


@pytest.mark.parametrize("name", ["gaternet-densenet", "gaternet-inception-last"])
def test_channels_that_all_lack_data(place, name):
    model = make_planned(name)
    fast = accelerate(place, model)
    check_network(place, model, fast, make_images(model, 1), torch.float32, random_gates(fast, 1, 0))


@pytest.mark.parametrize("name", ["skipnet-38-rnn", "gaternet-resnet-20", "gunn-15"])
def test_compiles_and_takes_an_empty_batch(place, name):
    fast = accelerate(place, make(name))
    images = make_images(fast, 2).to(place.device)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), fast(images))
    assert fast(images[:0]).shape == (0, fast.config.classes)
