"""Reference modules with statistics worth folding."""

import torch

from dsn_models.densenet import DenseLayer, Head, Transition
from dsn_models.dual_skipping import SkipDenseBlock
from dsn_models.resnet import PreActivationUnit
from tests.networks import randomise


def make_block(channels, layers, growth=12, bottleneck=True, merge="concat", gate="hard") -> SkipDenseBlock:
    torch.manual_seed(layers)
    step = growth if merge == "concat" else 0
    parts = [
        DenseLayer(channels + i * step, growth, bottleneck)
        if merge == "concat"
        else PreActivationUnit(channels, channels)
        for i in range(layers)
    ]
    return randomise(SkipDenseBlock(channels, parts, growth, merge, gate))


def make_transition(channels, out_channels) -> Transition:
    return randomise(Transition(channels, out_channels))


def make_head(channels, classes) -> Head:
    return randomise(Head(channels, classes))
