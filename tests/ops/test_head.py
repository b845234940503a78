import copy

import pytest
import torch
from references import make_head
from torch.utils.flop_counter import FlopCounterMode

from dsn_kernels import Part, ops
from dsn_models.errors import UserError
from tests.checks import assert_as_exact_as_torch


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 7), (5, 13)])
@pytest.mark.parametrize("channels", [(24, 10), (7, 3)], ids=str)
def test_equals_reference(size, channels, threads):
    module = make_head(*channels)
    x = images(3, channels[0], *size)
    assert_as_exact_as_torch(Part(module)(x), module(x), copy.deepcopy(module).double()(x.double()))


def arguments(fast, x):
    """Of the operator."""
    runner, sized = fast.runner, fast.runner.sized(*x.shape[-2:])
    return x, runner.weights, torch.empty(0), None, sized.words, *sized.sizes.values()


@pytest.mark.long
def test_empty_batch_and_opcheck():
    fast = Part(make_head(8, 4))
    assert fast(images(0, 8, 6, 6)).shape == (0, 4)
    *first, plan, gates, logits, stored = arguments(fast, images(2, 8, 6, 6))
    assert (gates, logits, stored) == (0, 4, [0, 1, 1])
    given = (*first, None, plan, gates, logits, stored, 0, False)
    torch.library.opcheck(torch.ops.dsn.run_plan.default, given)
    with FlopCounterMode(display=False) as counter:
        fast(images(2, 8, 6, 6))
    assert counter.get_total_flops() == 2 * int(fast.last_macs.sum()) == 2 * 2 * 8 * 4


def test_bad_arguments():
    fast = Part(make_head(8, 4))
    with pytest.raises(UserError, match=r"x has shape \[2, 8\]; expected a batch of maps"):
        fast(images(2, 8))
    with pytest.raises(RuntimeError, match="run_plan: weights hold"):
        image, _, *rest = arguments(fast, images(2, 8, 6, 6))
        ops.run_plan(image, torch.zeros(8), *rest)
