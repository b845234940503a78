"""A residual network, with or without gates, as a plan of the native runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dsn_models.densenet import Head
from dsn_models.resnet import BasicUnit, BottleneckUnit, PadShortcut, ResidualBottleneck, ResidualUnit
from dsn_models.skipnet import FeedForwardGate

from .. import _C
from ..ops.network import Plan
from .packing import Packer, pack_conv2d, pack_gate, pack_head, pack_linear, pack_recurrence


def plan_residual(model: nn.Module, side: int, masks: Mapping[str, int] | None = None) -> tuple[Plan, Tensor]:
    """The plan of a `ResNet`, `SkipNet` or GaterNet backbone, and the packed weights it names, float32.

    An identity shortcut needs no copy: its unit adds to the buffer that it reads. A bypassed unit is not touched.

    Args:
        model: has ``stem``, ``units``, ``head`` and perhaps ``gates``.
        side: of the maps that enter the plan: of the images, or of an ImageNet stem's output.
        masks: path of a convolution to the first of the gates that choose its filters.
    """
    return _Planner(model, side, masks or {}).plan_network()


class _Planner:
    def __init__(self, model: Any, side: int, masks: Mapping[str, int]) -> None:
        self.model, self.masks, self.side = model, masks, side
        self.plan, self.packer = Plan(), Packer()
        self.gates = list(model.gates) if hasattr(model, "gates") else []
        self.recurrent = hasattr(model, "control")
        self.shared = 0
        if self.recurrent:
            self.shared = pack_recurrence(self.packer, model.control.rnn, model.control.proj)
        self.scratch: dict[tuple[int, int, int], int] = {}

    def plan_network(self) -> tuple[Plan, Tensor]:
        units: list[ResidualUnit] = list(self.model.units)
        x = self._plan_stem()
        for i, unit in enumerate(units):
            gate = i - 1 if self.gates and i > 0 else -1
            if gate >= 0:
                self._plan_gate(gate, x)
            x = self._plan_unit(f"units.{i}", unit, x, gate, pool=self.recurrent)
        self._plan_head(x)
        return self.plan, self.packer.tensor()

    def _buffer(self, channels: int, side: int) -> int:
        return self.plan.buffer(channels, side, side)

    def _scratch(self, channels: int, side: int, index: int = 0) -> int:
        """A buffer within a unit; units of one shape share it."""
        key = (channels, side, index)
        if key not in self.scratch:
            self.scratch[key] = self._buffer(channels, side)
        return self.scratch[key]

    def _channels(self, buffer: int) -> int:
        return self.plan.buffers[buffer][0]

    def _side(self, buffer: int) -> int:
        return self.plan.buffers[buffer][1]

    def _conv(
        self,
        path: str,
        conv: nn.Conv2d,
        norm: nn.Module | None,
        src: int,
        dst: int,
        flags: tuple[str, ...],
        *,
        before: nn.BatchNorm2d | None = None,
        only_if: int = -1,
        source: str = "",
    ) -> None:
        """Appends a convolution; ``source`` is the path of the one whose filters it reads."""
        out_mask, in_mask = self.masks.get(path, -1), self.masks.get(source, -1)
        names = flags + (("normalise",) if before is not None else ())
        bits = sum(_C.FLAGS[name] for name in names)
        fields = pack_conv2d(self.packer, conv, norm, before, out_mask >= 0, self._side(dst), bits)
        self.plan.add(
            "conv2d",
            src=src,
            dst=dst,
            only_if=only_if,
            out_mask=out_mask,
            in_mask=in_mask,
            **fields,
        )

    def _plan_stem(self) -> int:
        stem: Any = self.model.stem
        if self.model.config.stem == "imagenet":  # torch runs it
            channels = stem[0].out_channels
            x = self._buffer(channels, self.side)
            self.plan.add("load", dst=x, in_channels=channels)
            return x
        plain = isinstance(stem, nn.Conv2d)
        conv, norm = (stem, None) if plain else (stem[0], stem[1])
        image = self._buffer(conv.in_channels, self.side)
        x = self._buffer(conv.out_channels, self.side)
        self.plan.add("load", dst=image, in_channels=conv.in_channels)
        self._conv("stem", conv, norm, image, x, () if norm is None else ("relu",))
        return x

    def _plan_unit(self, path: str, unit: ResidualUnit, x: int, gate: int, pool: bool) -> int:
        residual: Any = unit.residual if isinstance(unit, ResidualBottleneck) else unit
        where = f"{path}.residual" if isinstance(unit, ResidualBottleneck) else path
        first, last = residual.conv1, getattr(residual, "conv3", residual.conv2)
        channels, stride = last.out_channels, max(first.stride[0], residual.conv2.stride[0])
        side = -(-self._side(x) // stride)
        end = ("pool",) if pool else ()
        y = x if isinstance(unit.shortcut, nn.Identity) else self._plan_shortcut(path, unit.shortcut, x, side, end)
        merge = ("accumulate", "relu", *end)
        conv1, conv2, conv3 = (f"{where}.conv{i}" for i in (1, 2, 3))
        if isinstance(unit, BasicUnit):
            inner = self._scratch(channels, side)
            self._conv(conv1, first, unit.norm1, x, inner, ("relu",), only_if=gate)
            self._conv(conv2, last, unit.norm2, inner, y, merge, only_if=gate, source=conv1)
            return y
        narrow = self._scratch(first.out_channels, self._side(x))
        inner = self._scratch(first.out_channels, side, 1)
        if isinstance(unit, BottleneckUnit):
            self._conv(conv1, first, unit.norm1, x, narrow, ("relu",), only_if=gate)
            self._conv(conv2, residual.conv2, unit.norm2, narrow, inner, ("relu",), only_if=gate, source=conv1)
            self._conv(conv3, last, unit.norm3, inner, y, merge, only_if=gate, source=conv2)
            return y
        self._conv(conv1, first, residual.norm2, x, narrow, ("relu",), before=residual.norm1, only_if=gate)
        self._conv(conv2, residual.conv2, residual.norm3, narrow, inner, ("relu",), only_if=gate, source=conv1)
        self._conv(conv3, last, None, inner, y, ("accumulate", *end), only_if=gate, source=conv2)
        return y

    def _plan_shortcut(self, path: str, shortcut: nn.Module, x: int, side: int, end: tuple[str, ...]) -> int:
        if isinstance(shortcut, PadShortcut):
            before, after = shortcut.padding[4:]
            channels = self._channels(x) + before + after
            y = self._buffer(channels, side)
            self.plan.add(
                "subsample",
                src=x,
                dst=y,
                in_channels=self._channels(x),
                out_channels=channels,
                out_offset=before,
                stride=shortcut.stride,
            )
            return y
        conv, norm = (shortcut, None) if isinstance(shortcut, nn.Conv2d) else (shortcut[0], shortcut[1])  # type: ignore[index]
        y = self._buffer(conv.out_channels, side)
        self._conv(f"{path}.shortcut", conv, norm, x, y, end)
        return y

    def _plan_gate(self, index: int, x: int) -> None:
        """The gate that reads x and decides the next unit."""
        gate = self.gates[index]
        fields = {"src": x, "in_channels": self._channels(x), "first_gate": index}
        if self.recurrent:
            self.plan.add(
                "gate",
                gate=_C.GATES["recurrent"],
                flags=_C.FLAGS["accumulate"] if index > 0 else 0,
                shared=self.shared,
                weights=pack_gate(self.packer, gate.weight, gate.bias),
                **fields,
            )
            return
        assert isinstance(gate, FeedForwardGate)
        channels, side = self._channels(x), self._side(x)
        if gate.deep:
            small, side = self._scratch(channels, side // 2, 2), side // 2
            self.plan.add("max_pool", src=x, dst=small, in_channels=channels)
            inner = self._scratch(channels, side, 3)
            self._conv(f"gates.{index}.conv1", gate.conv1, gate.norm1, small, inner, ("relu",))
            conv, norm, x = gate.conv2, gate.norm2, inner
        else:
            conv, norm = gate.conv1, gate.norm1
        pooled = self._scratch(channels, -(-side // 2), 4)
        self._conv(f"gates.{index}.last", conv, norm, x, pooled, ("relu", "pool"))
        weight, bias = gate.linear.weight.double(), gate.linear.bias.double()  # softmax of two is a sigmoid
        offset = pack_gate(self.packer, weight[1:] - weight[:1], bias[1:] - bias[:1])
        self.plan.add("gate", gate=_C.GATES["soft"], weights=offset, **(fields | {"src": pooled}))

    def _plan_head(self, x: int) -> None:
        head = self.model.head
        if isinstance(head, Head):
            classes, weights = head.classifier.out_features, pack_head(self.packer, head, [])
            self.plan.add("head", src=x, in_channels=self._channels(x), out_channels=classes, weights=weights)
            return
        if not self.recurrent:
            self.plan.add("pool_sums", src=x, in_channels=self._channels(x))
        classes, weights = head[-1].out_features, pack_linear(self.packer, head[-1])
        self.plan.add("linear", src=x, in_channels=self._channels(x), out_channels=classes, weights=weights)
