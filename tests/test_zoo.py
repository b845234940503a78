"""Every name of the zoo, accelerated: same outputs as the reference in float64, and the work that its gates select."""

import copy

import pytest
import torch
from references import assert_as_exact_as_torch, assert_gates_agree, randomise
from small_models import SMALL, make_images

import dsn_kernels
import dsn_models
from dsn_models import zoo

_RESIDUAL = {"stage_units": (1, 2, 1), "stage_widths": (8, 16, 24), "stem_width": 8, "image_size": 16}
_GATER = {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "stem": "conv3x3"}


def _small(name):
    """Options that make a zoo model small and leave its kind of units, gates, stem and merge."""
    if name in SMALL:
        return SMALL[name]
    if name.startswith("gaternet"):
        backbone = {**_small(name.removeprefix("gaternet-"))}
        size = backbone.pop("image_size")
        return {"image_size": size, "backbone_options": backbone, "gater_options": _GATER}
    if name.startswith(("resnet", "skipnet")):
        bottleneck = any(depth in name for depth in ("50", "101", "152-rnn-imagenet", "164")) or name == "resnet-152"
        large = "imagenet" in name or name in ("resnet-18", "resnet-34", "resnet-50", "resnet-101", "resnet-152")
        options = {**_RESIDUAL, "image_size": 33 if large else 13}
        return options | ({"stage_widths": (16, 32, 48)} if bottleneck else {})
    if name.startswith("densenet"):
        return {"growth_rate": 8, "block_layers": (2, 3), "image_size": 12}
    if name.startswith("shake"):
        return {"stage_units": (1, 1, 1), "width": 8, "stem_width": 8, "image_size": 15}
    layers = {"widths": (12, 20), "segments": (3, 4)}
    return layers | ({"image_size": 32, "classes": 5} if "18" in name else {"image_size": 9})


def _as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("name", zoo.names())
@torch.inference_mode()
def test_equals_the_reference_and_counts_what_it_does(name):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name, **_small(name)))
    for module in model.modules():
        if hasattr(module, "path"):  # begins at zero
            torch.nn.init.normal_(module.path.weight)
    fast, exact = dsn_kernels.accelerate(model), copy.deepcopy(model).double()
    assert isinstance(fast, dsn_kernels.nn.Network)
    batch = 2
    images = make_images(model, batch)
    for density in (None, 0.0, 0.5, 1.0) if fast.layers else (None,):
        asked = (
            {key: (torch.rand(batch, n) < density).byte() for key, n in fast.layers.items()}
            if density is not None
            else {}
        )
        outputs = fast(images, forced_gates=asked) if asked else fast(images)
        taken = {"forced_gates": fast.last_gates} if fast.layers else {}
        for ours, plain, true in zip(
            *map(_as_tuple, (outputs, model(images, **taken), exact(images.double(), **taken))), strict=True
        ):
            assert_as_exact_as_torch(ours, plain, true)
        for key in fast.layers:
            if asked:
                assert torch.equal(fast.last_gates[key], asked[key])
            scale = max(1.0, exact.last_scores[key].abs().max().item())
            threshold = 0.0 if key == "filters" else 0.5
            assert_gates_agree(
                fast.last_gates[key] if not asked else fast.last_scores[key] > threshold,
                fast.last_scores[key] / scale,
                exact.last_scores[key] / scale,
                threshold / scale,
            )
        assert torch.equal(fast.last_macs, fast.macs(fast.last_gates).expand(batch))
