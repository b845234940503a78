"""Models that cannot be captured are refused in one line."""

import pytest
import torch
from torch import nn

import dsn_kernels
from dsn_models.errors import UserError
from dsn_models.functional import choose_filters, where_open


class Own(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 8, 3), forward

    def forward(self, x):
        return self.function(self, x)


def branches_on_data(n, x):
    return n.conv(x) if x.sum() > 0 else x[:, :1]


def calls_what_export_refuses(n, x):
    return n.conv(torch.from_numpy(x.numpy()))


def chooses_between_shapes(n, x):
    y = n.conv(x)
    return where_open(y.mean((1, 2, 3)) > 0, y, x)


def masks_what_no_convolution_made(n, x):
    y = n.conv(x) * 2 + x.mean((2, 3), keepdim=True).sum(1, keepdim=True)
    return choose_filters(y, n.conv(x).mean((2, 3)) > 0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branches_on_data, "cannot be captured by torch.export"),
        (calls_what_export_refuses, "cannot be captured by torch.export"),
        (chooses_between_shapes, "where_open: otherwise is"),
        (masks_what_no_convolution_made, "gate would be lost|expected choose_filters"),
    ],
)
def test_a_model_that_cannot_be_captured(function, message):
    with pytest.raises(UserError, match=message) as error:
        dsn_kernels.accelerate(Own(function).eval(), example=torch.zeros(2, 3, 8, 8), backend="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (2, 3, 2, 2), (3, 8, 8)])
def test_an_example_of_a_wrong_shape(shape):
    with pytest.raises(UserError) as error:
        dsn_kernels.accelerate(Own(lambda n, x: n.conv(x)).eval(), example=torch.zeros(shape), backend="cpu")
    assert "\n" not in str(error.value)
