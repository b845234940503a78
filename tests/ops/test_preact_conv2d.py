import copy

import pytest
import torch
from references import assert_as_exact_as_torch, make_transition

from dsn_kernels import nn, ops


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "size", [(2, 2), (3, 3), (8, 8), (16, 16), (32, 32), (7, 9), (14, 14), (28, 30), (56, 56), (64, 65)]
)
@pytest.mark.parametrize("channels", [(24, 12), (10, 7)], ids=str)
def test_equals_reference(size, channels, threads):
    module = make_transition(*channels)
    x = images(3, channels[0], *size)
    y = nn.Transition(module)(x)
    assert y.shape == module(x).shape
    assert_as_exact_as_torch(y, module(x), copy.deepcopy(module).double()(x.double()))


def test_empty_batch_and_non_contiguous():
    module = make_transition(8, 4)
    twin = nn.Transition(module)
    assert twin(images(0, 8, 6, 6)).shape == (0, 4, 3, 3)
    x = images(2, 16, 6, 6)[:, ::2]
    assert torch.equal(twin(x), twin(x.contiguous()))


def test_opcheck():
    twin = nn.Transition(make_transition(8, 4))
    torch.library.opcheck(torch.ops.dsn.preact_conv2d.default, (images(2, 8, 6, 6), twin.weights, 4))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(2, 8, 1, 6), r"preact_conv2d: x must be at least 2 x 2, got \[2, 8, 1, 6\]"),
        (images(2, 800, 6, 6), "preact_conv2d: weights hold"),
        (images(2, 8, 6), "preact_conv2d: x must have shape"),
        (images(2, 8, 6, 6).half(), "preact_conv2d: x must be Float, got Half"),
    ],
)
def test_bad_arguments(x, message):
    twin = nn.Transition(make_transition(8, 4))
    with pytest.raises(RuntimeError, match=message):
        ops.preact_conv2d(x, twin.weights, 4)
