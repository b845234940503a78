import copy

import pytest
import torch
from references import make_transition

from dsn_kernels import Part, ops
from dsn_models.errors import UserError
from tests.checks import assert_as_exact_as_torch


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "size", [(2, 2), (3, 3), (8, 8), (16, 16), (32, 32), (7, 9), (14, 14), (28, 30), (56, 56), (64, 65)]
)
@pytest.mark.parametrize("channels", [(24, 12), (10, 7)], ids=str)
def test_equals_reference(size, channels, threads):
    module = make_transition(*channels)
    x = images(3, channels[0], *size)
    y = Part(module)(x)
    assert y.shape == module(x).shape
    assert_as_exact_as_torch(y, module(x), copy.deepcopy(module).double()(x.double()))


def test_empty_batch_and_non_contiguous():
    module = make_transition(8, 4)
    fast = Part(module)
    assert fast(images(0, 8, 6, 6)).shape == (0, 4, 3, 3)
    x = images(2, 16, 6, 6)[:, ::2]
    assert torch.equal(fast(x), fast(x.contiguous()))


@pytest.mark.long
def test_opcheck():
    runner = Part(make_transition(8, 4)).runner
    sized = runner.sized(6, 6)
    given = (images(2, 8, 6, 6), runner.weights, torch.empty(0), None, None, sized.words)
    torch.library.opcheck(torch.ops.dsn.run_plan.default, (*given, *sized.sizes.values(), 0, False))


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (images(2, 8, 1, 6), UserError, "maps are 1 x 6; expected larger ones"),
        (images(2, 800, 6, 6), RuntimeError, "run_plan: the plan is for images of 8 x 6 x 6, got 800 x 6 x 6"),
        (images(2, 8, 6), UserError, r"x has shape \[2, 8, 6\]; expected a batch of maps"),
        (images(2, 8, 6, 6).half(), RuntimeError, "run_plan: image must be Float, got Half"),
    ],
)
def test_bad_arguments(x, kind, message):
    fast = Part(make_transition(8, 4))
    with pytest.raises(kind, match=message):
        fast(x)


def test_weights_of_another_transition_are_refused():
    sized = Part(make_transition(8, 4)).runner.sized(6, 6)
    with pytest.raises(RuntimeError, match="run_plan: weights hold 8 floats"):
        ops.run_plan(images(2, 8, 6, 6), torch.zeros(8), torch.empty(0), None, sized.words, **sized.sizes)
