"""A gradually updated network as a plan of the native runtime."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsn_models.gradually_updated import GradualLayer, GraduallyUpdatedNetwork, UpdateUnit

from .. import _C
from ..ops.network import Plan
from .packing import Packer, pack_conv2d, pack_joined_1x1, pack_linear


def plan_gradual(model: GraduallyUpdatedNetwork, side: int) -> tuple[Plan, Tensor]:
    """The plan of a GUNN or SUNN and the packed weights it names, float32.

    A layer's N channels stay in one buffer and each segment is updated in place. An update unit's first 1x1 and its
    shortcut read the same N channels, so they are one convolution.

    Args:
        model: the reference network.
        side: of the maps that enter the plan: of the images, or of an ImageNet stem's output.
    """
    return _Planner(model, side).plan_network()


class _Planner:
    def __init__(self, model: Any, side: int) -> None:
        self.model, self.side = model, side
        self.plan, self.packer = Plan(), Packer()

    def plan_network(self) -> tuple[Plan, Tensor]:
        model, config = self.model, self.model.config
        stem = list(model.stem)
        if config.stem == "imagenet":  # torch runs all but its last 1x1-BN-ReLU
            channels = stem[-3].in_channels
            x = self._buffer(channels)
            self.plan.add("load", dst=x, in_channels=channels)
        else:
            image, x = self._buffer(config.in_channels), self._buffer(stem[0].out_channels)
            self.plan.add("load", dst=image, in_channels=config.in_channels)
            self._conv(stem[0], stem[1], image, x, "relu")
        x = self._conv(stem[-3], stem[-2], x, None, "relu")
        for i, layer in enumerate(model.layers):
            if i > 0:
                x = self._plan_transition(list(model.transitions[i - 1]), x)
            x = self._plan_layer(layer, x)
        last = list(model.last)
        if last:
            x = self._conv(last[0], last[1], x, None, "relu", "pool")
        else:
            self.plan.add("pool_sums", src=x, in_channels=self._channels(x))
        classifier = model.classifier
        self.plan.add(
            "linear",
            src=x,
            in_channels=classifier.in_features,
            out_channels=classifier.out_features,
            weights=pack_linear(self.packer, classifier),
        )
        return self.plan, self.packer.tensor()

    def _buffer(self, channels: int) -> int:
        return self.plan.buffer(channels, self.side, self.side)

    def _channels(self, buffer: int) -> int:
        return self.plan.buffers[buffer][0]

    def _conv(
        self, conv: nn.Conv2d, norm: nn.Module | None, src: int, dst: int | None, *flags: str, **fields: int
    ) -> int:
        dst = self._buffer(conv.out_channels) if dst is None else dst
        bits = sum(_C.FLAGS[name] for name in flags)
        packed = pack_conv2d(self.packer, conv, norm, side=self.side, flags=bits)
        self.plan.add("conv2d", src=src, dst=dst, **packed, **fields)
        return dst

    def _plan_transition(self, modules: list[Any], x: int) -> int:
        """1x1-BN-ReLU and an average pool, whichever comes first."""
        pool_first = isinstance(modules[0], nn.AvgPool2d)
        conv, norm = modules[1:3] if pool_first else modules[:2]
        if not pool_first:
            x = self._conv(conv, norm, x, None, "relu")
        self.side //= 2
        small = self._buffer(self._channels(x))
        self.plan.add("avg_pool", src=x, dst=small, in_channels=self._channels(x))
        return self._conv(conv, norm, small, None, "relu") if pool_first else small

    def _plan_layer(self, layer: GradualLayer, x: int) -> int:
        y = x
        if layer.order == "simultaneous":  # segments read the old channels
            y = self._buffer(self._channels(x))
            self.plan.add(
                "subsample", src=x, dst=y, in_channels=self._channels(x), out_channels=self._channels(x), stride=1
            )
        sizes = {size for size in layer.sizes}
        width = max(unit.bodies[0][0].out_channels for _, unit in layer.segments())  # type: ignore[union-attr, index]
        joined, inner, narrow = self._buffer(width + max(sizes)), self._buffer(width), self._buffer(width)
        for channels, unit in layer.segments():
            assert isinstance(unit, UpdateUnit)
            self._plan_unit(unit, x, y, channels, joined, inner, narrow)
        return y

    def _plan_unit(
        self, unit: UpdateUnit, x: int, y: int, channels: slice, joined: int, inner: int, narrow: int
    ) -> None:
        """``y[channels] += G(x)``. ``joined`` holds the first 1x1's output and, behind it, G as it grows."""
        first, *others = (list[Any](body) for body in unit.bodies)  # type: ignore[call-overload]
        size, width = channels.stop - channels.start, first[0].out_channels
        if unit.shortcut is None and not others:
            self._conv(first[0], first[1], x, joined, "relu")
            self._conv(first[3], first[4], joined, inner, "relu")
            self._conv(first[6], first[7], inner, y, "accumulate", out_offset=channels.start)
            return
        parts = [(first[0], first[1])]
        if unit.shortcut is not None:
            parts.append((unit.shortcut[0], unit.shortcut[1]))
        self.plan.add(
            "conv2d",
            src=x,
            dst=joined,
            relu_channels=width,
            **pack_joined_1x1(self.packer, parts, _C.FLAGS["relu"]),
        )
        self._conv(first[3], first[4], joined, inner, "relu")
        end = ("accumulate",) if unit.shortcut is not None else ()
        self._conv(first[6], first[7], inner, joined, *end, out_offset=width)
        for body in others:
            self._conv(body[0], body[1], joined, narrow, "relu", src_offset=width)
            self._conv(body[3], body[4], narrow, inner, "relu")
            self._conv(body[6], body[7], inner, joined, "accumulate", out_offset=width)
        self.plan.add("add", src=joined, dst=y, in_channels=size, src_offset=width, out_offset=channels.start)
