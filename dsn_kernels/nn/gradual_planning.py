"""A gradually updated network as a plan of the native runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsn_models.gradually_updated import GradualLayer, GraduallyUpdatedNetwork, UpdateUnit

from ..ops.network import Plan
from .packing import folded_1x1, pack_folded, pack_joined_1x1
from .plan_builder import PlanBuilder

_TOGETHER = 24  # channels: their first 1x1s and shortcuts fill the micro-kernel's blocks


def plan_gradual(
    model: GraduallyUpdatedNetwork, side: int, bfloat16: bool = False, in_groups: bool = False
) -> tuple[Plan, Tensor]:
    """The plan of a GUNN or SUNN and the packed weights it names, float32.

    A layer's N channels stay in one buffer and each segment is updated in place. An update unit's first 1x1 and its
    shortcut read the same N channels, so they are one convolution.

    Args:
        model: the reference network.
        side: of the maps that enter the plan: of the images, or of an ImageNet stem's output.
        bfloat16: of the convolutions' products, on the CPU.
        in_groups: narrow segments take their products with the channels of others together; elsewhere a layer is told
            by its convolutions.
    """
    planner = GradualPlanner(bfloat16=bfloat16, in_groups=in_groups)
    planner.plan_network(model, side)
    return planner.result()


class GradualPlanner(PlanBuilder):
    """Appends gradual layers, and what lies between them, to a plan."""

    def __init__(self, in_groups: bool = False, any_size: bool = False, bfloat16: bool = False) -> None:
        super().__init__(any_size=any_size, bfloat16=bfloat16)
        self.in_groups = in_groups

    def plan_network(self, model: Any, side: int) -> None:
        stem = list(model.stem)
        if model.config.stem == "imagenet":  # torch runs all but its last 1x1-BN-ReLU
            x = self.load(stem[-3].in_channels, side)
        else:
            x = self.conv(stem[0], stem[1], self.load(model.config.in_channels, side), None, "relu")
        x = self.conv(stem[-3], stem[-2], x, None, "relu")
        for i, layer in enumerate(model.layers):
            if i > 0:
                x = self._plan_transition(list(model.transitions[i - 1]), x)
            x = self.plan_layer(layer, x)
        last = list(model.last)
        if last:
            x = self.conv(last[0], last[1], x, None, "relu", "pool")
        self.head(x, [model.classifier], pooled=bool(last))

    def _plan_transition(self, modules: list[Any], x: int) -> int:
        """1x1-BN-ReLU and an average pool, whichever comes first."""
        pool_first = isinstance(modules[0], nn.AvgPool2d)
        conv, norm = modules[1:3] if pool_first else modules[:2]
        if not pool_first:
            x = self.conv(conv, norm, x, None, "relu")
        small = self.pool("avg_pool", x, self.buffer(self.channels(x), self.side(x) // 2), 2, 2)
        return self.conv(conv, norm, small, None, "relu") if pool_first else small

    def plan_layer(self, layer: GradualLayer, x: int) -> int:
        y = x
        if layer.order == "simultaneous":  # segments read the old channels
            y = self.buffer(self.channels(x), self.side(x))
            self.plan.add(
                "subsample", src=x, dst=y, in_channels=self.channels(x), out_channels=self.channels(x), stride=1
            )
        units: list[tuple[slice, Any]] = list(layer.segments())
        groups = _groups(units) if self.in_groups and y == x else [[unit] for unit in units]
        width = max(unit.bodies[0][0].out_channels for _, unit in units)
        rows = max(width + max(layer.sizes), *(sum(_rows(unit) for _, unit in group) for group in groups))
        joined, inner = self.buffer(rows, self.side(x)), self.buffer(width, self.side(x))
        stacked = max(len(unit.bodies) for _, unit in units) > 1
        narrow = self.buffer(width, self.side(x)) if stacked else inner
        for group in groups:
            if len(group) == 1:
                ((channels, unit),) = group
                packed, rectified = pack_joined_1x1(self.packer, _parts(unit)), _relu_channels(unit)
                with self.plan.region("update_unit"):
                    self.packed_conv(packed, x, joined, "relu", relu_channels=rectified)
                    self._plan_rest(unit, y, channels, joined, 0, inner, narrow)
            else:
                self._plan_together(group, x, joined, inner, narrow)
        return y

    def _plan_together(self, group: list[tuple[slice, Any]], x: int, joined: int, inner: int, narrow: int) -> None:
        """As one after another, but the products with channels that none of these units updates are taken at once."""
        weights, biases = zip(*(folded_1x1(_parts(unit)) for _, unit in group), strict=True)
        weight, bias = torch.cat(weights), torch.cat(biases)
        begin, end = group[0][0].start, group[-1][0].stop
        others = [part for part in (slice(0, begin), slice(end, weight.shape[1])) if part.start < part.stop]
        for i, part in enumerate(others):
            packed = pack_folded(self.packer, weight[:, part], bias if i == 0 else torch.zeros_like(bias))
            self.packed_conv(packed, x, joined, *["accumulate"][:i], stride=1, src_offset=part.start)
        at = 0
        for (channels, unit), own in zip(group, weights, strict=True):
            packed = pack_folded(self.packer, own[:, begin:end], own.new_zeros(len(own)))
            where = {"stride": 1, "src_offset": begin, "out_offset": at}
            self.packed_conv(packed, x, joined, "accumulate", "relu", **where, relu_channels=_relu_channels(unit))
            self._plan_rest(unit, x, channels, joined, at, inner, narrow)
            at += len(own)

    def _plan_rest(
        self, unit: UpdateUnit, y: int, channels: slice, joined: int, at: int, inner: int, narrow: int
    ) -> None:
        """``y[channels] += G(x)``. ``joined`` holds the first 1x1's output at ``at`` and, behind it, G as it grows."""
        bodies: Any = unit.bodies
        first, *others = map(list, bodies)
        grown = at + first[0].out_channels
        self.conv(first[3], first[4], joined, inner, "relu", src_offset=at)
        if unit.shortcut is None and not others:
            self.conv(first[6], first[7], inner, y, "accumulate", out_offset=channels.start)
            return
        end = ("accumulate",) if unit.shortcut is not None else ()
        self.conv(first[6], first[7], inner, joined, *end, out_offset=grown)
        for body in others:
            self.conv(body[0], body[1], joined, narrow, "relu", src_offset=grown)
            self.conv(body[3], body[4], narrow, inner, "relu")
            self.conv(body[6], body[7], inner, joined, "accumulate", out_offset=grown)
        size = channels.stop - channels.start
        self.plan.add("add", src=joined, dst=y, in_channels=size, src_offset=grown, out_offset=channels.start)


def _parts(unit: UpdateUnit) -> list[tuple[Any, Any]]:
    """The convolutions that read all channels, each with its batch norm."""
    body: Any = unit.bodies[0]
    shortcut: Any = unit.shortcut
    return [(body[0], body[1]), *([(shortcut[0], shortcut[1])] if shortcut is not None else [])]


def _rows(unit: UpdateUnit) -> int:
    return sum(conv.out_channels for conv, _ in _parts(unit))


def _relu_channels(unit: UpdateUnit) -> int:
    """The first 1x1's channels get the ReLU, the shortcut's do not; 0: all."""
    return 0 if unit.shortcut is None else _parts(unit)[0][0].out_channels


def _groups(units: list[tuple[slice, Any]]) -> list[list[tuple[slice, Any]]]:
    """Neighbours that together update a few channels, fewer than all."""
    groups: list[list[tuple[slice, Any]]] = [[]]
    for channels, unit in units:
        if groups[-1] and channels.stop - groups[-1][0][0].start > _TOGETHER:
            groups.append([])
        groups[-1].append((channels, unit))
    no_room = any(unit.shortcut is None and len(unit.bodies) > 1 for _, unit in units)  # for G behind the first 1x1
    return [[unit] for unit in units] if len(groups) == 1 or no_room else groups
