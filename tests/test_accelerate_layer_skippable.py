"""Layer-skippable networks on the kernels: blocks and transitions are swapped, the head stays torch's."""

import pytest
import torch
from references import randomise
from small_models import SMALL, make_images

import dsn_kernels
import dsn_models


@pytest.mark.parametrize("name", ["lsn-navon", "lsn-concat-bc-100"])
@torch.no_grad()
def test_equals_reference(name):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name, **SMALL[name])).eval()
    for branch in (model.coarse, model.fine):
        torch.nn.init.normal_(branch.head.path.weight)
    fast = dsn_kernels.accelerate(model)
    assert {part.split(".")[1] for part in fast.swapped} == {"blocks", "transitions"}
    images = make_images(model, 3)
    for ours, reference in zip(fast(images), model(images), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    for branch, gates in model.last_gates.items():
        assert 0 < gates.float().mean() < 1
        assert torch.equal(fast.last_gates[branch], gates)
