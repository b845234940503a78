"""A gradually updated network as a plan of the native runtime."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsn_models.gradually_updated import GradualLayer, GraduallyUpdatedNetwork, UpdateUnit

from ..ops.network import Plan
from .packing import pack_joined_1x1
from .plan_builder import PlanBuilder


def plan_gradual(model: GraduallyUpdatedNetwork, side: int, bfloat16: bool = False) -> tuple[Plan, Tensor]:
    """The plan of a GUNN or SUNN and the packed weights it names, float32.

    A layer's N channels stay in one buffer and each segment is updated in place. An update unit's first 1x1 and its
    shortcut read the same N channels, so they are one convolution.

    Args:
        model: the reference network.
        side: of the maps that enter the plan: of the images, or of an ImageNet stem's output.
        bfloat16: of the convolutions' products, on the CPU.
    """
    planner = GradualPlanner(bfloat16=bfloat16)
    planner.plan_network(model, side)
    return planner.result()


class GradualPlanner(PlanBuilder):
    """Appends gradual layers, and what lies between them, to a plan."""

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
        width = max(unit.bodies[0][0].out_channels for _, unit in units)
        joined, inner = self.buffer(width + max(layer.sizes), self.side(x)), self.buffer(width, self.side(x))
        stacked = max(len(unit.bodies) for _, unit in units) > 1
        narrow = self.buffer(width, self.side(x)) if stacked else inner
        for channels, unit in units:
            assert isinstance(unit, UpdateUnit)
            self._plan_unit(unit, x, y, channels, joined, inner, narrow)
        return y

    def _plan_unit(
        self, unit: UpdateUnit, x: int, y: int, channels: slice, joined: int, inner: int, narrow: int
    ) -> None:
        """``y[channels] += G(x)``. ``joined`` holds the first 1x1's output and, behind it, G as it grows."""
        bodies: Any = unit.bodies
        first, *others = map(list, bodies)
        size, width = channels.stop - channels.start, first[0].out_channels
        if unit.shortcut is None and not others:
            self.conv(first[0], first[1], x, joined, "relu")
            self.conv(first[3], first[4], joined, inner, "relu")
            self.conv(first[6], first[7], inner, y, "accumulate", out_offset=channels.start)
            return
        parts = [(first[0], first[1])]
        if unit.shortcut is not None:
            parts.append((unit.shortcut[0], unit.shortcut[1]))
        self.packed_conv(pack_joined_1x1(self.packer, parts), x, joined, "relu", relu_channels=width)
        self.conv(first[3], first[4], joined, inner, "relu")
        end = ("accumulate",) if unit.shortcut is not None else ()
        self.conv(first[6], first[7], inner, joined, *end, out_offset=width)
        for body in others:
            self.conv(body[0], body[1], joined, narrow, "relu", src_offset=width)
            self.conv(body[3], body[4], narrow, inner, "relu")
            self.conv(body[6], body[7], inner, joined, "accumulate", out_offset=width)
        self.plan.add("add", src=joined, dst=y, in_channels=size, src_offset=width, out_offset=channels.start)
