"""The examples of docs/extending.md, accelerated: outputs and gates are the model's, what is shut is not computed."""

import pytest
import torch

import dsn_kernels
from tests.capture.capture_checks import run_model, settle
from tests.checks import assert_as_exact_as_torch
from tests.test_extending import EXAMPLES, run


@pytest.mark.long
@pytest.mark.parametrize("title", dict(EXAMPLES))
@torch.no_grad()
def test_an_example_is_accelerated(title):
    model, images = run(dict(EXAMPLES)[title])
    settle(model.requires_grad_(False))
    fast = dsn_kernels.accelerate(model, example=images, backend="cpu")
    actual = fast(images)
    same, given = run_model(model, images)
    exact, decided = run_model(model.double(), images.double())
    assert all(map(torch.equal, given, decided))
    assert_as_exact_as_torch(actual, same, exact)
    gates = torch.cat(list(fast.last_gates.values()), 1)
    if title.startswith("SkipNet"):  # recurrent gates are decided within the plan
        assert list(fast.parts) == [""], fast.summary()
    assert sorted(gates.sum(1)) == sorted(torch.cat(decided, 1).sum(1))
    macs = {}
    for value in (0, 1):
        forced = {
            name: torch.full((len(images), count), value, dtype=torch.uint8) for name, count in fast.layers.items()
        }
        fast(images, forced_gates=forced)
        macs[value] = fast.last_macs
    assert (macs[0] < macs[1]).all() and (macs[1] == fast.dense_macs).all()
