"""Parts of networks that a stage stands for, small, and what each computes in plain torch."""

import torch
from torch import nn

from dsn_kernels.capture import ChosenConv2d, ResidualUnits
from dsn_models.densenet import DenseBlock
from dsn_models.gradually_updated import GradualLayer
from dsn_models.inception import make_inception_a, make_inception_stem, make_reduction_a
from dsn_models.resnet import BasicUnit, BottleneckUnit, ResidualBottleneck
from dsn_models.shake_shake import ShakeUnit
from dsn_models.skipnet import FeedForwardGate, RecurrentGate
from tests.networks import randomise


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def masks(batch, count, density, seed=7):
    return (torch.rand(batch, count, generator=torch.Generator().manual_seed(seed)) < density).byte()


def gradual(sizes, order="gradual", units=1, shortcut=False):
    return GradualLayer(sizes, 2, units, shortcut, order, recompute=False)


PARTS = {
    "basic": (lambda: BasicUnit(8, 8, 1), 8),
    "basic-entry": (lambda: BasicUnit(8, 16, 2), 8),
    "basic-pad": (lambda: BasicUnit(8, 16, 2, "pad"), 8),
    "bottleneck": (lambda: BottleneckUnit(16, 32, 2), 16),
    "preact": (lambda: ResidualBottleneck(16, 16, 1), 16),
    "preact-entry": (lambda: ResidualBottleneck(16, 32, 2), 16),
    "shake": (lambda: ShakeUnit(8, 8, 1), 8),
    "shake-entry": (lambda: ShakeUnit(8, 16, 2), 8),
    "gradual": (lambda: gradual((4, 4, 4)), 12),
    "gradual-one-channel": (lambda: gradual((1,) * 6), 6),
    "gradual-uneven": (lambda: gradual((1, 7, 4), shortcut=True), 12),
    "gradual-stacked": (lambda: gradual((6, 6), units=2), 12),
    "simultaneous": (lambda: gradual((4, 8), "simultaneous"), 12),
    "dense": (lambda: DenseBlock(8, 4, 3, bottleneck=True), 8),
    "dense-plain": (lambda: DenseBlock(8, 4, 3, bottleneck=False), 8),
    "branches": (make_inception_a, 384),
    "branches-halving": (make_reduction_a, 384),
    "branches-valid": (lambda: make_inception_stem(3)[4], 160),
}


def make_part(name):
    torch.manual_seed(1)
    make, channels = PARTS[name]
    return randomise(make()), channels


GATES = {
    "recurrent": (lambda c: nn.Linear(c, 10), RecurrentGate),
    "ff-1": (lambda c: FeedForwardGate(c, True), lambda: None),
    "ff-2": (lambda c: FeedForwardGate(c, False), lambda: None),
}


def make_stage(unit, gate, first_gated):
    """Four units, the third an entry, and the gates of all but the first ``first_gated``."""
    torch.manual_seed(2)
    kinds = {"basic": BasicUnit, "bottleneck": BottleneckUnit, "preact": ResidualBottleneck}
    units = [kinds[unit](*shape) for shape in ((8, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1))]
    make_gate, make_control = GATES[gate]
    gates = [make_gate(channels) for channels in (8, 8, 8, 16)[first_gated:]]
    control = make_control()
    holder = nn.ModuleDict({"units": nn.ModuleList(units), "gates": nn.ModuleList(gates)})
    if control is not None:
        holder["control"] = control
    return randomise(holder)


def residual_units(stage):
    """What a stage is made of, from :func:`make_stage`."""
    return ResidualUnits(stage["units"], stage["gates"], stage["control"] if "control" in stage else None)


def run_reference(stage, x, threshold=0.5, forced=None):
    """SkipNet's equation 1, unit by unit, everything computed."""
    first = len(stage["units"]) - len(stage["gates"])
    state, scores = None, []
    for i, unit in enumerate(stage["units"]):
        keep = torch.ones(len(x), dtype=torch.bool)
        if i >= first:
            gate = stage["gates"][i - first]
            if "control" in stage:
                score, state = stage["control"](gate(x.mean((2, 3))), state)
            else:
                score = gate(x)
            scores.append(score)
            keep = score > threshold if forced is None else forced[:, i - first] != 0
        shortcut = unit.shortcut(x)
        x = torch.where(keep[:, None, None, None], unit.merge(shortcut, unit.residual(x)), shortcut)
    return x, torch.stack(scores, 1)


CONVOLUTIONS = {
    "3x3": ({"kernel_size": 3, "padding": 1}, {}),
    "3x3-stride": ({"kernel_size": 3, "padding": 1, "stride": 2}, {"relu": True}),
    "1x1": ({"kernel_size": 1}, {"relu": True}),
    "1x1-preact": ({"kernel_size": 1}, {"before": True}),
    "1x7": ({"kernel_size": (1, 7), "padding": (0, 3)}, {"relu": True}),
    "7x1": ({"kernel_size": (7, 1), "padding": (3, 0)}, {}),
    "valid": ({"kernel_size": 3}, {"relu": True}),
    "valid-stride": ({"kernel_size": 3, "stride": 2}, {}),
    "5x5-bias": ({"kernel_size": 5, "bias": True}, {"norm": False}),
    "7x7-stride-3": ({"kernel_size": 7, "stride": 3, "padding": 3}, {}),
}


def make_selected(name, channels=10, filters=20):
    torch.manual_seed(4)
    shape, around = CONVOLUTIONS[name]
    conv = nn.Conv2d(channels, filters, **{"bias": False, **shape})
    norm = nn.BatchNorm2d(filters) if around.get("norm", True) else None
    before = nn.BatchNorm2d(channels) if around.get("before") else None
    parts = nn.ModuleDict({k: m for k, m in (("conv", conv), ("norm", norm), ("before", before)) if m is not None})
    randomise(parts)
    relu = around.get("relu", False)
    return parts, relu, ChosenConv2d(conv, norm, relu, before)


def run_selected(parts, relu, x, filters, channels):
    x = x * channels[:, :, None, None].to(x)
    if "before" in parts:
        x = parts["before"](x).relu()
    y = parts["conv"](x)
    y = parts["norm"](y) if "norm" in parts else y
    return (y.relu() if relu else y) * filters[:, :, None, None].to(x)
