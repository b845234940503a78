"""Accelerated residual networks, SkipNets, GaterNets and GUNNs on the Triton kernels, against float64."""

import copy

import pytest
import torch
from references import assert_as_exact_as_torch
from small_models import SMALL, make_images

import dsn_kernels
import dsn_models

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


def make(name):
    options = dict(MODELS[name])
    if name.startswith("gaternet"):
        options = {"image_size": 8, **options}
    torch.manual_seed(0)
    model = dsn_models.create(name, **{**SMALL.get(name, {}), **options}).train()
    with torch.no_grad():  # batch norms that have seen data
        model(make_images(model, 4))
    return model.eval()


def check(place, model, dtype, forced, batch=3):
    fast = dsn_kernels.accelerate(model, dtype=dtype, backend=place.backend, device=place.device)
    images = make_images(model, batch)
    keywords = {} if forced is None else {"forced_gates": {k: g.to(place.device) for k, g in forced.items()}}
    logits = fast(images.to(place.device), **keywords).cpu()
    gates = {key: taken.cpu() for key, taken in fast.last_gates.items()}
    taken = {"forced_gates": gates} if gates else {}
    exact = copy.deepcopy(model).double()
    same = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        truth, plain = exact(images.double(), **taken), same(images.to(dtype), **taken)
    assert_as_exact_as_torch(logits, plain, truth)
    if dtype == torch.float32:
        for key, scores in fast.last_scores.items():
            expected = exact.last_scores[key]
            torch.testing.assert_close(scores.cpu().double(), expected, rtol=2e-5, atol=2e-5)
    if forced is not None:
        assert all(torch.equal(gates[key], forced[key]) for key in forced)
    assert torch.equal(fast.last_macs.cpu(), fast.macs(gates).expand(batch))
    return fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_reference(place, name, dtype):
    model, forced = make(name), None
    if dtype == torch.float16 and getattr(model, "gate_counts", None):
        generator = torch.Generator().manual_seed(1)
        forced = {
            key: torch.randint(0, 2, (3, count), generator=generator, dtype=torch.uint8)
            for key, count in model.gate_counts.items()
        }
    check(place, model, dtype, forced)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("name", ["skipnet-38-rnn", "gaternet-resnet-20"])
def test_all_open_and_all_shut(place, name, value):
    model = make(name)
    forced = {key: torch.full((2, count), value, dtype=torch.uint8) for key, count in model.gate_counts.items()}
    check(place, model, torch.float32, forced, batch=2)


def test_samples_of_a_tile_are_far_apart(place):
    """Two of seventy samples run a unit: one from each word."""
    model = make("skipnet-38-rnn")
    (key, count), *_ = model.gate_counts.items()
    gates = torch.zeros(70, count, dtype=torch.uint8)
    gates[[3, 68]] = 1
    check(place, model, torch.float16, {key: gates}, batch=70)


@pytest.mark.parametrize("name", ["skipnet-38-rnn", "gaternet-resnet-20", "gunn-15"])
def test_compiles_and_takes_an_empty_batch(place, name):
    fast = dsn_kernels.accelerate(make(name), backend=place.backend, device=place.device)
    images = make_images(fast, 2).to(place.device)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), fast(images))
    assert fast(images[:0]).shape == (0, fast.config.classes)
