import copy

import pytest
import torch
from references import assert_as_exact_as_torch, make_head

from dsn_kernels import nn, ops


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 7), (5, 13)])
@pytest.mark.parametrize("channels", [(24, 10), (7, 3)], ids=str)
def test_equals_reference(size, channels, threads):
    module = make_head(*channels)
    x = images(3, channels[0], *size)
    assert_as_exact_as_torch(nn.Head(module)(x), module(x), copy.deepcopy(module).double()(x.double()))


def test_empty_batch_and_opcheck():
    twin = nn.Head(make_head(8, 4))
    assert twin(images(0, 8, 6, 6)).shape == (0, 4)
    torch.library.opcheck(torch.ops.dsn.head.default, (images(2, 8, 6, 6), twin.weights, 4))


def test_bad_arguments():
    twin = nn.Head(make_head(8, 4))
    with pytest.raises(RuntimeError, match="head: x must have shape"):
        ops.head(images(2, 8), twin.weights, 4)
    with pytest.raises(RuntimeError, match="head: weights hold"):
        ops.head(images(2, 8, 6, 6), twin.weights, 400)
