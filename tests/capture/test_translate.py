"""Each operation that has kernels, behind a convolution, against torch; what is left to torch says why."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.capture.capture_checks import check_capture, make_images, settle

CHANNELS, SIZE = 8, (9, 7)


class Behind(nn.Module):
    """What ``function`` gives of a convolution's map, 8 x 9 x 7, and of ``part``, a module or a tensor."""

    def __init__(self, function, part=None):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, CHANNELS, 3, padding=1), function
        if isinstance(part, torch.Tensor):
            self.register_buffer("part", part)
        else:
            self.part = part

    def forward(self, x):
        y = self.conv(x)
        return self.function(y) if self.part is None else self.function(y, self.part)


def through(y, part):
    return part(y)


def conv(outputs=6, kernel=3, **options):
    return lambda: Behind(through, nn.Conv2d(CHANNELS, outputs, kernel, **options))


def module(make, *args, **options):
    return lambda: Behind(through, make(*args, **options))


def function(f):
    return lambda: Behind(f)


def constant(f, *shape):
    return lambda: Behind(f, torch.rand(shape) + 0.5)


def pooled(f):
    return lambda: Behind(lambda y, part: f(part(y.mean((2, 3)))), nn.Linear(CHANNELS, 5))


KERNELS = {
    "conv 1x1": conv(kernel=1),
    "conv 5x5": conv(kernel=5, padding=2),
    "conv 3x1": conv(kernel=(3, 1), padding=(1, 0)),
    "conv 2x2": conv(kernel=2, bias=False),
    "conv stride": conv(stride=2, padding=1),
    "conv stride 3": conv(stride=3),
    "conv dilation": conv(dilation=2, padding=2),
    "conv groups": conv(outputs=4, groups=4, padding=1),
    "conv depthwise": conv(outputs=8, groups=8, padding=1),
    "conv depthwise stride": conv(outputs=8, groups=8, stride=2, padding=1),
    "conv depthwise multiplied": conv(outputs=16, groups=8, padding=1),
    "conv same": conv(padding="same"),
    "conv same even": conv(kernel=4, padding="same"),
    "conv valid": conv(padding="valid"),
    "pad in front": lambda: Behind(lambda y, part: part(F.pad(y, (0, 1, 2, 1))), nn.Conv2d(CHANNELS, 6, 3, stride=2)),
    "batch norm": module(nn.BatchNorm2d, CHANNELS),
    "batch norm plain": module(nn.BatchNorm2d, CHANNELS, affine=False),
    "relu": function(F.relu),
    "relu6": function(lambda y: F.relu6(8 * y)),
    "clamp": function(lambda y: (8 * y).clamp(0, 6)),
    "clamp_min": function(lambda y: y.clamp_min(0)),
    "hardtanh": function(lambda y: F.hardtanh(8 * y, 0, 6)),
    "sigmoid": function(torch.sigmoid),
    "hardsigmoid": function(lambda y: F.hardsigmoid(4 * y)),
    "silu": function(F.silu),
    "silu spelled out": function(lambda y: y * y.sigmoid()),
    "hardswish": function(lambda y: F.hardswish(4 * y)),
    "tanh": function(torch.tanh),
    "add": function(lambda y: y + y.relu()),
    "add three": function(lambda y: y + y.relu() + y.sigmoid()),
    "add number": function(lambda y: 0.25 + y),
    "add constant": constant(lambda y, c: y + c, 1, CHANNELS, 1, 1),
    "add constant without batch": constant(lambda y, c: c + y, CHANNELS, 1, 1),
    "sub number": function(lambda y: y - 0.25),
    "sub constant": constant(lambda y, c: y - c, 1, CHANNELS, 1, 1),
    "div number": function(lambda y: y / 3),
    "div constant": constant(lambda y, c: y / c, 1, CHANNELS, 1, 1),
    "mul number": function(lambda y: y * -1.5),
    "mul constant": constant(lambda y, c: c * y, CHANNELS, 1, 1),
    "mul factor": function(lambda y: y * y.mean((2, 3), keepdim=True).sigmoid()),
    "cat": function(lambda y: torch.cat([y, y.relu(), y[:, 2:5]], 1)),
    "split": function(lambda y: torch.cat(y.split(3, 1)[::-1], 1)),
    "split sizes": function(lambda y: torch.cat(y.split([1, 5, 2], 1)[::-1], 1)),
    "chunk": function(lambda y: torch.cat(y.chunk(2, 1)[::-1], 1)),
    "slice": function(lambda y: y[:, 1:6]),
    "slice from the end": function(lambda y: y[:, -3:]),
    "slice short of the end": function(lambda y: y[:, :-3]),
    "select": pooled(lambda y: y[:, 2]),
    "select from the end": pooled(lambda y: y[:, -1]),
    "squeeze": lambda: Behind(lambda y, part: part(y.mean((2, 3))).squeeze(1), nn.Linear(CHANNELS, 1)),
    "select of one": lambda: Behind(lambda y, part: part(y.mean((2, 3)))[:, 0], nn.Linear(CHANNELS, 1)),
    "max pool": module(nn.MaxPool2d, 2),
    "max pool padded": module(nn.MaxPool2d, 3, 2, padding=1),
    "max pool ceil": module(nn.MaxPool2d, 2, ceil_mode=True),
    "max pool uneven": module(nn.MaxPool2d, (3, 2), 2, padding=(1, 0)),
    "avg pool": module(nn.AvgPool2d, 2),
    "avg pool padded": module(nn.AvgPool2d, 3, 2, padding=1),
    "avg pool of pixels": module(nn.AvgPool2d, 3, 2, padding=1, count_include_pad=False),
    "avg pool ceil": module(nn.AvgPool2d, 3, 2, padding=1, ceil_mode=True),
    "avg pool ceil of pixels": module(nn.AvgPool2d, 2, ceil_mode=True, count_include_pad=False),
    "avg pool whole": module(nn.AvgPool2d, SIZE),
    "adaptive to one": module(nn.AdaptiveAvgPool2d, 1),
    "adaptive to a third": module(nn.Sequential, nn.Conv2d(CHANNELS, 4, 1, padding=(0, 1)), nn.AdaptiveAvgPool2d(3)),
    "adaptive max": module(nn.AdaptiveMaxPool2d, 1),
    "mean": function(lambda y: y.mean((2, 3))),
    "mean keepdim": function(lambda y: y.mean((-1, -2), keepdim=True)),
    "linear": pooled(lambda y: y),
    "linear relu": pooled(F.relu),
    "linear sigmoid": pooled(torch.sigmoid),
    "linear of a map": module(nn.Sequential, nn.Flatten(), nn.Linear(CHANNELS * SIZE[0] * SIZE[1], 5), nn.ReLU()),
    "nearest": module(nn.Upsample, scale_factor=2),
    "nearest thrice": function(lambda y: F.interpolate(y, size=(27, 21))),
    "view": function(lambda y: y.mean((2, 3), keepdim=True).flatten(1)),
    "unsqueeze": function(lambda y: y * y.mean((2, 3)).sigmoid()[:, :, None, None]),
    "flatten": function(lambda y: y.flatten(1)),
    "dropout": module(nn.Dropout, 0.5),
}

FOREIGN = {
    "transposed": (module(nn.ConvTranspose2d, CHANNELS, 4, 3), "no kernel has"),
    "stride by direction": (conv(stride=(2, 1)), "stride differs"),
    "dilation by direction": (conv(dilation=(2, 1)), "dilation differs"),
    "pad with ones": (lambda: Behind(lambda y: F.pad(y, (1, 1), value=1.0)), "pads with something else"),
    "clamp": (function(lambda y: y.clamp(-1, 2)), "clamps to -1 and 2"),
    "gelu": (function(F.gelu), "no kernel has"),
    "add alpha": (function(lambda y: torch.add(y, y.relu(), alpha=2)), "adds 2 times"),
    "add broadcast": (function(lambda y: y + y.mean((2, 3), keepdim=True)), "different shapes"),
    "add a whole constant": (constant(lambda y, c: y + c, CHANNELS, *SIZE), "a constant of"),
    "sub": (function(lambda y: y - y.relu()), "subtracts maps"),
    "div": (function(lambda y: y / (y.sigmoid() + 1)), "divides by a map"),
    "mul": (function(lambda y: y * y.relu()), "multiplies maps"),
    "cat of rows": (function(lambda y: torch.cat([y, y], 2)), "joins along"),
    "rows": (function(lambda y: y[:, :, 1:4]), "part along"),
    "every other channel": (function(lambda y: y[:, ::2]), "part along"),
    "dilated pool": (module(nn.MaxPool2d, 2, dilation=2), "dilated pool"),
    "divisor": (module(nn.AvgPool2d, 2, divisor_override=3), "a number of its own"),
    "uneven windows": (module(nn.AdaptiveAvgPool2d, 5), "uneven windows"),
    "mean of rows": (function(lambda y: y.mean(2)), "mean over"),
    "sum": (function(lambda y: y.sum((2, 3))), "sums over"),
    "softmax": (function(lambda y: y.softmax(1)), "softmax"),
    "nearest uneven": (function(lambda y: F.interpolate(y, size=(13, 11))), "enlarges"),
    "by the batch": (function(lambda y: y / y.shape[0]), "computes with a size"),
    "by a size of values": (function(lambda y: y * torch.nonzero(y > 1).shape[0]), "computes with a size"),
}


def captured(make):
    torch.manual_seed(0)
    return check_capture(settle(make()), make_images(size=SIZE))


@pytest.mark.parametrize("name", KERNELS)
def test_an_operation_of_kernels(name):
    checked = captured(KERNELS[name])
    assert checked.whole, checked.fast.summary()
    for batch in (0, 1):
        checked.check(make_images(batch, SIZE))


@pytest.mark.parametrize("name", FOREIGN)
def test_an_operation_left_to_torch(name):
    make, reason = FOREIGN[name]
    checked = captured(make)
    assert not checked.whole
    assert reason in checked.fast.summary()
    for batch in (0, 1, 5):
        checked.check(make_images(batch, SIZE))


def test_a_division_by_0_is_left_to_torch():
    assert "divides by 0" in captured(function(lambda y: torch.where(y > 9, y / 0, y))).fast.summary()
