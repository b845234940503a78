"""Every name of the zoo, accelerated: same outputs as the reference in float64, and the work that its gates select."""

import copy

import pytest
import torch
from references import assert_as_exact_as_torch, assert_gates_agree, randomise
from small_models import ZOO, make_images, smaller

import dsn_kernels
import dsn_models


def _as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("config, family", [pytest.param(c, f, id=c.name) for c, f in ZOO])
@torch.inference_mode()
def test_equals_the_reference_and_counts_what_it_does(config, family):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(config.name, **smaller(config, family)))
    for module in model.modules():
        if hasattr(module, "path"):  # begins at zero
            torch.nn.init.normal_(module.path.weight)
    fast, exact = dsn_kernels.accelerate(model), copy.deepcopy(model).double()
    assert isinstance(fast, dsn_kernels.Accelerated)
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
