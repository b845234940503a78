"""A residual network, with or without gates, as a plan of the native runtime."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsn_models.resnet import BasicUnit, PadShortcut, ResidualBottleneck, ResidualUnit
from dsn_models.skipnet import FeedForwardGate, RecurrentGate

from .. import _C
from ..ops.network import Plan
from .packing import pack_gate, pack_recurrence
from .plan_builder import Masks, PlanBuilder


def plan_residual(
    model: nn.Module, side: int, masks: Masks | None = None, bfloat16: bool = False
) -> tuple[Plan, Tensor]:
    """The plan of a `ResNet`, `SkipNet` or GaterNet backbone, and the packed weights it names, float32.

    An identity shortcut needs no copy: its unit adds to the buffer that it reads. A bypassed unit is not touched.

    Args:
        model: has ``stem``, ``units``, ``head`` and perhaps ``gates``.
        side: of the maps that enter the plan: of the images, or of an ImageNet stem's output.
        masks: path of a convolution to the first of the gates that choose its filters.
        bfloat16: of the convolutions' products, on the CPU.
    """
    planner = ResidualPlanner(masks, bfloat16=bfloat16)
    planner.plan_stages(model, planner.plan_stem(model, side))
    return planner.result()


class ResidualPlanner(PlanBuilder):
    """Appends stems, gated stages and heads of residual networks to a plan."""

    recurrent = False
    shared = 0

    def plan_stages(self, model: Any, x: int) -> None:
        """The units with their gates, and the head."""
        x = self.plan_units(list(model.units), list(getattr(model, "gates", [])), getattr(model, "control", None), x)
        self.head(x, model.head, pooled=self.recurrent)

    def plan_units(
        self, units: list[ResidualUnit], gates: list[Any], control: RecurrentGate | None, x: int, first_gated: int = 1
    ) -> int:
        """Units from ``first_gated`` on are kept or bypassed as ``gates`` decide, in order; returns the last output."""
        self.recurrent = control is not None
        if control is not None:
            self.shared = pack_recurrence(self.packer, control.rnn, control.proj)
        for i, unit in enumerate(units):
            gate = i - first_gated if gates and i >= first_gated else -1
            if gate >= 0:
                self._plan_gate(gates[gate], gate, x)
            x = self.plan_unit(f"units.{i}", unit, x, gate, pool=self.recurrent)
        return x

    def plan_stem(self, model: Any, side: int) -> int:
        stem: Any = model.stem
        if model.config.stem == "imagenet":  # torch runs it
            return self.load(stem[0].out_channels, side)
        plain = isinstance(stem, nn.Conv2d)
        conv, norm = (stem, None) if plain else (stem[0], stem[1])
        return self.conv(conv, norm, self.load(conv.in_channels, side), None, *(() if plain else ("relu",)))

    def plan_unit(self, path: str, unit: ResidualUnit, x: int, gate: int = -1, pool: bool = False) -> int:
        """A unit that runs where ``gate`` is open; returns its output's buffer. ``pool``: keep its pooled vector."""
        if isinstance(unit, BasicUnit):
            with self.plan.region("residual_unit", front=int(self.recurrent and gate >= 0)):
                return self._plan_convs(path, unit, x, gate, pool)
        in_place = isinstance(unit, ResidualBottleneck) and isinstance(unit.shortcut, nn.Identity)
        with self.plan.region("bottleneck_unit" if in_place else None):
            return self._plan_convs(path, unit, x, gate, pool)

    def _plan_convs(self, path: str, unit: ResidualUnit, x: int, gate: int, pool: bool) -> int:
        preact = isinstance(unit, ResidualBottleneck)
        residual: Any = unit.residual if preact else unit
        where = f"{path}.residual" if preact else path
        first, last = residual.conv1, getattr(residual, "conv3", residual.conv2)
        channels, stride = last.out_channels, max(first.stride[0], residual.conv2.stride[0])
        side = -(-self.side(x) // stride)
        end = ("pool",) if pool else ()
        y = x if isinstance(unit.shortcut, nn.Identity) else self._plan_shortcut(path, unit.shortcut, x, side, end)
        merge = ("accumulate", *(() if preact else ("relu",)), *end)
        conv1, conv2, conv3 = (f"{where}.conv{i}" for i in (1, 2, 3))
        if isinstance(unit, BasicUnit):
            inner = self.scratch(channels, side)
            self.conv(first, unit.norm1, x, inner, "relu", path=conv1, only_if=gate)
            self.conv(last, unit.norm2, inner, y, *merge, path=conv2, only_if=gate)
            return y
        narrow = self.scratch(first.out_channels, self.side(x))
        inner = self.scratch(first.out_channels, side, 1)
        names = ("norm2", "norm3", "") if preact else ("norm1", "norm2", "norm3")
        norms = [getattr(residual, name, None) for name in names]
        before = residual.norm1 if preact else None
        self.conv(first, norms[0], x, narrow, "relu", path=conv1, before=before, only_if=gate)
        self.conv(residual.conv2, norms[1], narrow, inner, "relu", path=conv2, only_if=gate)
        self.conv(last, norms[2], inner, y, *merge, path=conv3, only_if=gate)
        return y

    def _plan_shortcut(self, path: str, shortcut: nn.Module, x: int, side: int, end: tuple[str, ...]) -> int:
        if isinstance(shortcut, PadShortcut):
            before, after = shortcut.padding[4:]
            channels = self.channels(x) + before + after
            y = self.buffer(channels, side)
            self.plan.add(
                "subsample",
                src=x,
                dst=y,
                in_channels=self.channels(x),
                out_channels=channels,
                out_offset=before,
                stride=shortcut.stride,
            )
            return y
        parts: Any = shortcut
        conv, norm = (parts, None) if isinstance(parts, nn.Conv2d) else (parts[0], parts[1])
        return self.conv(conv, norm, x, self.buffer(conv.out_channels, side), *end)

    def _plan_gate(self, gate: Any, index: int, x: int) -> None:
        """Gate number ``index``, which reads x and decides the next unit."""
        fields = {"src": x, "in_channels": self.channels(x), "first_gate": index}
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
        channels, side = self.channels(x), self.side(x)
        if gate.deep:
            side //= 2
            small = self.pool("max_pool", x, self.scratch(channels, side, 2), 2, 2)
            x = self.conv(gate.conv1, gate.norm1, small, self.scratch(channels, side, 3), "relu", exact=True)
            conv, norm = gate.conv2, gate.norm2
        else:
            conv, norm = gate.conv1, gate.norm1
        pooled = self.scratch(channels, -(-side // 2), 4)
        self.conv(conv, norm, x, pooled, "relu", "pool", exact=True)
        weight, bias = gate.linear.weight.double(), gate.linear.bias.double()  # softmax of two is a sigmoid
        offset = pack_gate(self.packer, weight[1:] - weight[:1], bias[1:] - bias[:1])
        self.plan.add("gate", gate=_C.GATES["soft"], weights=offset, **(fields | {"src": pooled}))
