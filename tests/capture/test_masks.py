"""Filters that a mask chose leave channels without data: whatever reads them next, the outputs are the model's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dsn_kernels
from dsn_models.functional import choose_filters
from tests.checks import assert_as_exact_as_torch

CHANNELS = 16


class Masked(nn.Module):
    """A convolution whose filters a linear map of the pooled image chooses, and what reads it."""

    def __init__(self, reader):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.wide = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.point, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.chooser, self.head = nn.Linear(3, CHANNELS), nn.Linear(CHANNELS, 5)
        nn.init.normal_(self.chooser.weight, 0, 3)
        self.norm.running_mean.normal_()
        nn.init.normal_(self.norm.bias)
        self.reader = reader

    def forward(self, x):
        mask = self.mask = (self.chooser(x.mean((2, 3))).sigmoid() > 0.5).to(x.dtype)
        y = self.reader(self, choose_filters(self.conv(x), mask))
        return self.head(self.point(y).relu().mean((2, 3)))


READERS = {
    "a sum onto it": lambda m, y: y + m.wide(y),
    "a sum that it comes to last": lambda m, y: m.point(y) + y,
    "sigmoid": lambda m, y: y.sigmoid(),
    "batch norm": lambda m, y: torch.cat([m.norm(y), m.wide(y)], 1)[:, :CHANNELS],
    "BN-ReLU and convolutions": lambda m, y: m.wide(m.norm(y).relu()) + m.point(m.norm(y).relu()),
    "a depthwise convolution": lambda m, y: m.depthwise(y) + y.relu(),
    "a factor": lambda m, y: y.mean((2, 3), keepdim=True).sigmoid() * y,
    "pools": lambda m, y: F.max_pool2d(y, 2) + F.avg_pool2d(y, 2),
    "enlarged": lambda m, y: F.interpolate(y, scale_factor=2),
    "a mask again": lambda m, y: choose_filters(m.point(y), m.mask) + y,
}


@pytest.mark.parametrize("name", READERS)
def test_channels_without_data(name):
    model, images = Masked(READERS[name]).eval(), torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    fast = dsn_kernels.accelerate(model, example=images, strict=True)
    with torch.no_grad():
        same, exact = model(images), model.double()(images.double())
        assert_as_exact_as_torch(fast(images), same, exact)
    chosen = next(iter(fast.last_gates.values()))
    assert torch.equal(chosen[:, :CHANNELS].double(), model.mask) and 0 < chosen[:, :CHANNELS].double().mean() < 1
