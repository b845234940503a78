"""LeNet-5 as a graph."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsn_models.lenet import LeNet

from ..graph import Graph, Pointwise, Window
from .builder import GraphBuilder
from .folding import folded_conv, window_of
from .registry import FAMILIES, Family, from_config


def capture_lenet(model: LeNet, side: int) -> Graph:
    """The graph of ``model``; a linear layer on flattened maps is a convolution with a window of the maps' size."""
    builder = GraphBuilder()
    x = builder.load(model.config.in_channels, side)
    layers: list[Any] = [*model.features, *model.classifier]
    for layer in layers[:-1]:
        side = builder.side(x)
        if isinstance(layer, nn.Conv2d):
            x = builder.conv(layer, None, x, builder.map(layer.out_channels, *window_of(layer).output_size(side, side)))
        elif isinstance(layer, nn.AvgPool2d):
            x = builder.pool(layer, x, builder.map(builder.channels(x), *window_of(layer).output_size(side, side)))
        elif isinstance(layer, nn.Linear):
            weight, bias = folded_conv(layer, None)
            weight = weight.unflatten(1, (builder.channels(x), side, side))
            x = builder.folded_conv(weight, bias, Window(side, side), x, builder.map(layer.out_features, 1))
        else:
            builder.add(Pointwise(src=x, dst=x, activation="tanh", in_channels=builder.channels(x)))
    builder.head(x, [layers[-1]])
    return builder


FAMILIES[LeNet] = Family(from_config, capture_lenet)
