"""A residual network, with or without gates, as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from dsn_models.resnet import BasicUnit, BottleneckUnit, PadShortcut, ResidualBottleneck, ResidualUnit, ResNet
from dsn_models.skipnet import UNITS, FeedForwardGate, RecurrentGate, SkipNet, resolve_thresholds

from ..graph import FullyConnected, Gate, Graph, Pointwise, PoolSums, Recurrence, Subsample
from .builder import PART_SIDE, GraphBuilder, Masks
from .registry import FAMILIES, Family, family_of, from_config


def capture_residual(model: Any, side: int, masks: Masks | None = None) -> Graph:
    """The graph of a `ResNet`, `SkipNet` or GaterNet backbone.

    An identity shortcut needs no copy: its unit adds to the map that it reads. A bypassed unit is not touched.

    Args:
        model: has ``stem``, ``units``, ``head`` and perhaps ``gates``.
        side: of the maps that enter the graph: of the images, or of an ImageNet stem's output.
        masks: path of a convolution to the first of the gates that choose its filters.
    """
    builder = ResidualBuilder(masks)
    x = builder.add_stem(model, side)
    control = getattr(model, "control", None)
    x = builder.add_units(list(model.units), list(getattr(model, "gates", [])), control, x)
    builder.head(x, model.head, pooled=control is not None)
    return builder


class ResidualBuilder(GraphBuilder):
    """Adds stems, gated units and heads of residual networks to a graph."""

    def add_stem(self, model: Any, side: int) -> int:
        stem = model.stem
        if model.config.stem == "imagenet":  # torch runs it
            return self.load(stem[0].out_channels, side)
        plain = isinstance(stem, nn.Conv2d)
        conv, norm = (stem, None) if plain else (stem[0], stem[1])
        return self.conv(conv, norm, self.load(conv.in_channels, side), None, activation="none" if plain else "relu")

    def add_units(
        self, units: list[Any], gates: list[Any], control: RecurrentGate | None, x: int, first_gated: int = 1
    ) -> int:
        """Units from ``first_gated`` on are kept or bypassed as ``gates`` decide, in order; returns the last output."""
        shared = None if control is None else _recurrence(control)
        for i, unit in enumerate(units):
            gate = i - first_gated if gates and i >= first_gated else -1
            if gate >= 0 and shared is None:
                self._add_gate(gates[gate], gate, self._add_gate_convolutions(gates[gate], x), None)
            with self.region("residual_unit" if isinstance(unit, BasicUnit) else None):
                if gate >= 0 and shared is not None:
                    self._add_gate(gates[gate], gate, x, shared)
                x = self.add_unit(f"units.{i}", unit, x, gate, pool=shared is not None)
        return x

    def add_unit(self, path: str, unit: ResidualUnit, x: int, gate: int = -1, pool: bool = False) -> int:
        """A unit that runs where ``gate`` is open; returns its output. ``pool``: keep its pooled vector."""
        preact = isinstance(unit, ResidualBottleneck)
        body: Any = unit.residual if preact else unit
        inside = f"{path}.residual" if preact else path
        first, last = body.conv1, getattr(body, "conv3", body.conv2)
        channels, stride = last.out_channels, max(first.stride[0], body.conv2.stride[0])
        side = -(-self.side(x) // stride)
        y = x if isinstance(unit.shortcut, nn.Identity) else self._add_shortcut(unit.shortcut, x, side, pool)
        where: dict[str, Any] = {"only_if": gate, "where": path if gate >= 0 else ""}
        merge = {"accumulate": True, "activation": "none" if preact else "relu", "pool": pool, **where}
        conv1, conv2, conv3 = (f"{inside}.conv{i}" for i in (1, 2, 3))
        end, added = y, merge
        if (
            body.excitation is not None
        ):  # the residual has a map of its own, whose channels are scaled as they are added
            end, added = self.scratch(channels, side, 5), {"pool": True, **where}
        if isinstance(unit, BasicUnit):
            inner = self.scratch(channels, side)
            self.conv(first, unit.norm1, x, inner, activation="relu", path=conv1, **where)
            self.conv(last, unit.norm2, inner, end, path=conv2, **added)
            return self._add_excitation(body.excitation, end, y, merge)
        narrow = self.scratch(first.out_channels, self.side(x))
        inner = self.scratch(first.out_channels, side, 1)
        names = ("norm2", "norm3", "") if preact else ("norm1", "norm2", "norm3")
        norms = [getattr(body, name, None) for name in names]
        before = body.norm1 if preact else None
        with self.region("bottleneck_unit" if preact and y == x and end == y else None):
            self.conv(first, norms[0], x, narrow, activation="relu", path=conv1, before=before, **where)
            self.conv(body.conv2, norms[1], narrow, inner, activation="relu", path=conv2, **where)
            self.conv(last, norms[2], inner, end, path=conv3, **added)
        return self._add_excitation(body.excitation, end, y, merge)

    def _add_excitation(self, excitation: Any, x: int, y: int, merge: dict[str, Any]) -> int:
        """``y = activation(y + x factors)`` with the factors that ``excitation`` makes of x; without it, x is y."""
        if excitation is None:
            return y
        inner, factors = excitation.reduce, excitation.expand
        squeezed, factor = self.map(inner.out_features, 1), self.map(factors.out_features, 1)
        for linear, src, dst, activation in ((inner, x, squeezed, "relu"), (factors, squeezed, factor, "sigmoid")):
            fields: dict[str, Any] = {"only_if": merge["only_if"], "where": merge["where"], "activation": activation}
            weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
            self.add(
                FullyConnected(src=src, dst=dst, in_channels=linear.in_features, weight=weight, bias=bias, **fields)
            )
        options = {key: merge[key] for key in ("accumulate", "activation", "only_if", "where")}
        self.add(Pointwise(src=x, dst=y, in_channels=self.channels(x), factor=factor, **options))
        if merge["pool"]:
            self.add(PoolSums(src=y, in_channels=self.channels(y)))
        return y

    def _add_shortcut(self, shortcut: Any, x: int, side: int, pool: bool) -> int:
        if isinstance(shortcut, PadShortcut):
            before, after = shortcut.padding[4:]
            channels = self.channels(x) + before + after
            y = self.map(channels, side)
            sizes: dict[str, Any] = {"in_channels": self.channels(x), "out_channels": channels}
            self.add(Subsample(src=x, dst=y, out_offset=before, stride=shortcut.stride, **sizes))
            return y
        conv, norm = (shortcut, None) if isinstance(shortcut, nn.Conv2d) else (shortcut[0], shortcut[1])
        return self.conv(conv, norm, x, self.map(conv.out_channels, side), pool=pool)

    def _add_gate(self, gate: Any, index: int, x: int, shared: Recurrence | None) -> None:
        """Gate number ``index``, which reads the pooled vector of x and decides the next unit."""
        linear = gate if shared is not None else gate.linear
        weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
        if shared is None:  # softmax of two is a sigmoid
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        fields: dict[str, Any] = {"src": x, "in_channels": self.channels(x), "first_gate": index}
        self.add(Gate(weight=weight, bias=bias, recurrence=shared, follows=shared is not None and index > 0, **fields))

    def _add_gate_convolutions(self, gate: Any, x: int) -> int:
        """Adds the convolutions of a feed-forward gate; returns the map that it pools."""
        channels, side = self.channels(x), self.side(x)
        fields: dict[str, Any] = {"activation": "relu", "exact": True, "where": "gate"}
        if gate.deep:
            side //= 2
            small = self.pool(nn.MaxPool2d(2), x, self.scratch(channels, side, 2))
            x = self.conv(gate.conv1, gate.norm1, small, self.scratch(channels, side, 3), **fields)
        conv, norm = (gate.conv2, gate.norm2) if gate.deep else (gate.conv1, gate.norm1)
        return self.conv(conv, norm, x, self.scratch(channels, -(-side // 2), 4), pool=True, **fields)


def _recurrence(control: RecurrentGate) -> Recurrence:
    cell, projection = control.rnn, control.proj
    return Recurrence(
        input=cell.weight_ih.detach().double(),
        hidden=cell.weight_hh.detach().double(),
        bias=cell.bias_ih.detach().double() + cell.bias_hh.detach().double(),
        projection=projection.weight.detach().double().flatten(),
        projection_bias=projection.bias.detach().double(),
    )


def capture_units(units: Sequence[Any], gates: Sequence[Any] = (), control: RecurrentGate | None = None) -> Graph:
    """Residual units as a part of their own; ``gates`` decide on the last of them, as in `dsn_models.SkipNet`."""
    builder = ResidualBuilder()
    first: Any = units[0].residual if isinstance(units[0], ResidualBottleneck) else units[0]
    x = builder.load(first.conv1.in_channels, PART_SIDE)
    return builder.stored_at(builder.add_units(list(units), list(gates), control, x, len(units) - len(gates)))


def _unit(unit: Any) -> nn.Module:
    family: Any = family_of(unit)
    body = unit.residual if family is ResidualBottleneck else unit
    last = body.conv2 if family is BasicUnit else body.conv3
    stride = max(body.conv1.stride[0], body.conv2.stride[0])
    shortcut = "pad" if isinstance(unit.shortcut, PadShortcut) else "projection"
    hidden = 0 if body.excitation is None else body.excitation.reduce.out_features
    return family(body.conv1.in_channels, last.out_channels, stride, shortcut, hidden)


_UNIT = Family(_unit, part=lambda unit: capture_units([unit]))
FAMILIES |= {
    ResNet: Family(from_config, capture_residual),
    SkipNet: Family(
        from_config,
        capture_residual,
        limits=lambda thresholds, config: {UNITS: resolve_thresholds(thresholds, config)},
    ),
    BasicUnit: _UNIT,
    BottleneckUnit: _UNIT,
    ResidualBottleneck: _UNIT,
    FeedForwardGate: Family(lambda gate: FeedForwardGate(gate.conv1.in_channels, gate.deep)),
    RecurrentGate: Family(lambda gate: RecurrentGate()),
}
