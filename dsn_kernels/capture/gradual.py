"""A gradually updated network as a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsn_models.gradually_updated import GradualLayer, GraduallyUpdatedNetwork

from ..graph import Affine, Graph, Pointwise, Subsample, Window
from .builder import PART_SIDE, GraphBuilder
from .folding import folded_conv
from .registry import FAMILIES, Family, from_config

_POINT = Window(1, 1)


def capture_gradual(model: GraduallyUpdatedNetwork, side: int) -> Graph:
    """The graph of a GUNN or SUNN.

    A layer's N channels stay in one map and each segment is updated in place. An update unit's first 1x1 and its
    shortcut read the same N channels, so they are one convolution.

    Args:
        model: the reference network.
        side: of the maps that enter the graph: of the images, or of an ImageNet stem's output.
    """
    builder = GradualBuilder()
    stem: Any = list(model.stem)
    if model.config.stem == "imagenet":  # torch runs all but its last 1x1-BN-ReLU
        x = builder.load(stem[-3].in_channels, side)
    else:
        x = builder.conv(stem[0], stem[1], builder.load(model.config.in_channels, side), None, activation="relu")
    x = builder.conv(stem[-3], stem[-2], x, None, activation="relu")
    layers: list[Any] = list(model.layers)
    transitions: list[Any] = list(model.transitions)
    for i, layer in enumerate(layers):
        if i > 0:
            x = builder.add_transition(list(transitions[i - 1]), x)
        x = builder.add_layer(layer, x)
    last: Any = list(model.last)
    if last:
        x = builder.conv(last[0], last[1], x, None, activation="relu", pool=True)
    builder.head(x, [model.classifier], pooled=bool(last))
    return builder


class GradualBuilder(GraphBuilder):
    """Adds gradual layers, and what lies between them, to a graph."""

    def add_transition(self, modules: list[Any], x: int) -> int:
        """1x1-BN-ReLU and an average pool, whichever comes first."""
        pool_first = isinstance(modules[0], nn.AvgPool2d)
        conv, norm = modules[1:3] if pool_first else modules[:2]
        if not pool_first:
            x = self.conv(conv, norm, x, None, activation="relu")
        small = self.pool(nn.AvgPool2d(2), x, self.map(self.channels(x), self.side(x) // 2))
        return self.conv(conv, norm, small, None, activation="relu") if pool_first else small

    def add_layer(self, layer: GradualLayer, x: int) -> int:
        y, channels = x, self.channels(x)
        if layer.order == "simultaneous":  # segments read the old channels
            y = self.map(channels, self.side(x))
            self.add(Subsample(src=x, dst=y, in_channels=channels, out_channels=channels, stride=1))
        units: list[tuple[slice, Any]] = list(layer.segments())
        width = max(unit.bodies[0][0].out_channels for _, unit in units)
        joined, inner = self.map(width + max(layer.sizes), self.side(x)), self.map(width, self.side(x))
        stacked = max(len(unit.bodies) for _, unit in units) > 1
        narrow = self.map(width, self.side(x)) if stacked else inner
        for segment, unit in units:
            with self.region("update_unit" if layer.residual else None):
                self._add_unit(unit, x, y, segment, layer.residual, joined, inner, narrow)
        return y

    def _add_unit(
        self, unit: Any, x: int, y: int, segment: slice, residual: bool, joined: int, inner: int, narrow: int
    ) -> None:
        """``y[segment] += G(x)``, or ``= G(x)`` if not ``residual``.

        ``joined`` gets the first 1x1's output and, behind it, G as it grows.
        """
        first, *others = map(list, unit.bodies)
        width, shortcut = first[0].out_channels, unit.shortcut
        parts = [folded_conv(*first[:2]), *([] if shortcut is None else [folded_conv(*list(shortcut)[:2])])]
        weight, bias = (torch.cat(part) for part in zip(*parts, strict=True))
        # The first 1x1's channels get the ReLU, the shortcut's do not.
        ends = 0 if shortcut is None else width
        self.folded_conv(weight, bias, _POINT, x, joined, activation="relu", activated=ends)
        self.conv(first[3], first[4], joined, inner, activation="relu")
        if not residual:  # a map is written from its beginning or added to, so the segment becomes zeros first
            size = segment.stop - segment.start
            zero, at = torch.zeros(size, dtype=torch.float64), segment.start
            self.add(Pointwise(src=y, dst=y, in_channels=size, affine=Affine(zero, zero), src_offset=at, out_offset=at))
        if shortcut is None and not others:
            self.conv(first[6], first[7], inner, y, accumulate=True, out_offset=segment.start)
            return
        self.conv(first[6], first[7], inner, joined, accumulate=shortcut is not None, out_offset=width)
        for body in others:
            self.conv(body[0], body[1], joined, narrow, activation="relu", src_offset=width)
            self.conv(body[3], body[4], narrow, inner, activation="relu")
            self.conv(body[6], body[7], inner, joined, accumulate=True, out_offset=width)
        size = segment.stop - segment.start
        where = {"src_offset": width, "out_offset": segment.start}
        self.add(Pointwise(src=joined, dst=y, in_channels=size, accumulate=True, **where))


def _capture_layer(layer: Any) -> Graph:
    builder = GradualBuilder()
    return builder.stored_at(builder.add_layer(layer, builder.load(sum(layer.sizes), PART_SIDE)))


def _layer(layer: Any) -> nn.Module:
    unit = layer.units[0]
    expansion = unit.bodies[0][0].out_channels // layer.sizes[0]
    units, shortcut = len(unit.bodies), unit.shortcut is not None
    return GradualLayer(layer.sizes, expansion, units, shortcut, layer.order, layer.recompute, layer.residual)


FAMILIES |= {
    GraduallyUpdatedNetwork: Family(from_config, capture_gradual, stem=lambda model: model.stem[0]),
    GradualLayer: Family(_layer, part=_capture_layer),
}
