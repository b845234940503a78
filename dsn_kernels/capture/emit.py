"""From values to a graph: where each lives, and which node computes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

from .. import graph as g
from .gating import Gating, decide_first, gate_of
from .placing import Place, Places
from .values import Program, Shape, Unserved, Value


@dataclass(frozen=True)
class Output:
    """One that leaves: ``shape`` of a sample's, from logit ``first`` on, or from the stored values' ``first`` on."""

    shape: Shape
    first: int
    stored: bool = False


@dataclass(frozen=True)
class Emitted:
    """A program as a graph.

    Attributes:
        graph: its nodes.
        outputs: what leaves, in order.
        gates: of each of its gates, the module that it belongs to.
        thresholds: above which a score opens each.
        given: the gates that are decided before: each with which of the tensors that enter opens it.
        left: of the gates that leave, the first of each of the program's.
    """

    graph: g.Graph
    outputs: list[Output]
    gates: list[str]
    thresholds: list[float]
    given: dict[int, int]
    left: list[int]


def emit(program: Program) -> Emitted:
    """The graph of a program.

    Raises:
        Unserved: a recurrent gate that cannot go on from the one before.
    """
    decide_first(program)
    return _Emitter(program).run()


class _Emitter:
    def __init__(self, program: Program) -> None:
        self.program, self.graph = program, g.Graph()
        self.gating = Gating(program)
        self.places = Places(program, self.graph)
        self.pooled: set[int] = set()  # maps whose pooled vector is known
        self.stays_pooled = False  # where the last node does not run, that of its map is known
        self.vector_maps: dict[Value, int] = {}  # of vectors without a map of their own
        self.decided: set[int] = set()
        self.opens = {number: value for value, number in self.gating.first.items()}

    def run(self) -> Emitted:
        entered = 0
        for value in self.program.inputs:
            if all(user.op == "stem" for user in self.places.users[value]):
                continue  # they read the image itself
            self.graph.add(g.Load(dst=self.places.of[value].map, in_channels=value.channels, src_offset=entered))
            entered += prod(value.shape)
        outputs, left, done = list[Output](), 0, set[Value]()
        for value in [*self.program.inputs, *self.program.values]:
            if value.op != "input" and (value in self.places.vectors or value in self.places.logits):
                self._linear(value)
            elif value.op != "input":
                getattr(self, f"_{value.op}")(value)
            done.add(value)
            while len(outputs) < len(self.program.outputs) and self.program.outputs[len(outputs)] in done:
                outputs.append(self._left(self.program.outputs[len(outputs)], self.program.shapes[len(outputs)], left))
                left += prod(outputs[-1].shape) if outputs[-1].stored else 0
        at = {value: i for i, value in enumerate(self.program.inputs)}
        given: dict[int, int] = {}
        for value, first in self.gating.first.items():
            if (gate := gate_of(value)) and gate.source.is_decision:
                given |= dict.fromkeys(range(first, first + gate.channels), at[gate.source])
        gates = [self.gating.column(gate) for gate in self.program.gates]
        return Emitted(self.graph, outputs, self.gating.names, self.gating.thresholds, given, gates)

    def _left(self, value: Value, shape: Shape, left: int) -> Output:
        """What leaves: a logit, or stored behind ``left`` values. It leaves as soon as it is there: what its stream
        does is then over when another's guide asks for it."""
        if value in self.places.logits:
            return Output(shape, self.places.logits[value])
        map, _ = self._alone(value)
        self.graph.add(g.Store(src=map, in_channels=value.channels, out_offset=left))
        return Output(shape, left, stored=True)

    def _common(self, value: Value) -> dict[str, Any]:
        gate = self.gating.of(value)
        self._decide(gate)
        return {"only_if": gate, "where": value.where}

    def _decide(self, gate: int) -> None:
        """Adds what decides on a gate, or on the filters of a convolution, unless it is there."""
        if gate < 0 or gate in self.decided:
            return
        run = self.gating.run_of(gate)
        self.decided |= set(run)
        value = self.opens[run[0]]
        opened = gate_of(value)
        assert opened is not None
        outer = self.gating.of(value)
        self._decide(outer)
        fields: dict[str, Any] = {"only_if": outer, "where": value.where, "first_gate": run[0]}
        fields |= {"src_offset": opened.first, "in_channels": len(run)}
        self.graph.add(g.Decide(src=self._vector(opened.source), **fields))

    def _vector(self, value: Value) -> int:
        """The map whose pooled vector is a value's mean, or the value itself where that is one."""
        if value in self.vector_maps:
            return self.vector_maps[value]
        if value.op == "mean" and value in self.places.vectors:
            return self._vector(value.source)
        map, _ = self._alone(value)
        if map not in self.pooled:
            self._pool(value, map)
        return map

    def _pool(self, value: Value, map: int) -> None:
        """Keeps the pooled vector of a map: the node that computes it does so if nothing but it has written it."""
        gate = self.gating.of(value)
        last = self.graph.nodes[-1]
        if (
            isinstance(last, g.Conv2d)
            and last.dst == map
            and last.out_channels == value.channels
            and (last.only_if == gate or self.stays_pooled)
        ):
            self.graph.nodes[-1] = replace(last, pool=True)
        else:
            self.graph.add(g.PoolSums(src=map, in_channels=value.channels, only_if=gate, where=value.where))
        self.pooled.add(map)

    def _alone(self, value: Value) -> Place:
        """A map that holds a value and nothing else."""
        place = self.places.place(value)
        if place.offset == 0 and self.graph.maps[place.map].channels == value.channels:
            return place
        alone = Place(self.graph.map(*self._sizes(value)))
        self._copy(value, place, alone, only_if=self.gating.of(value), where=value.where)
        return alone

    @staticmethod
    def _sizes(value: Value) -> tuple[int, int, int]:
        height, width = value.shape[1:] or (1, 1)
        return value.channels, height, width

    def _copy(self, value: Value, source: Place, to: Place, **fields: Any) -> None:
        if source.map == to.map and (source != to or fields.get("accumulate")):
            between = Place(self.graph.map(*self._sizes(value)))
            self._copy(value, source, between, only_if=fields["only_if"], where=fields["where"])
            source = between
        offsets: dict[str, Any] = {"src_offset": source.offset, "out_offset": to.offset}
        self._append(g.Pointwise(src=source.map, dst=to.map, in_channels=value.channels, **offsets, **fields))

    def _append(self, node: g.Node) -> None:
        self.graph.add(node)
        self.stays_pooled = node.dst in self.pooled
        self.pooled.discard(node.dst)

    def _finished(self, value: Value, kind: Any, source: Place | None = None, **fields: Any) -> None:
        """Adds the node that computes a value, perhaps onto a sum, perhaps by way of a map of its own.

        ``source``: where that lies which it reads, if not in its own place.
        """
        source, to = source or self.places.place(value.source), self.places.of[value]
        total = self.places.accumulated.get(value)
        activation = value.activation if total is None else total.activation
        ends: dict[str, Any] = {"activation": activation, "accumulate": True} if total else {"activation": activation}
        common = self._common(value)
        reads = {"src": source.map, "src_offset": source.offset, "in_channels": value.source.channels, **common}
        if source.map != to.map or (kind is g.Pointwise and source == to and not total):
            self._append(kind(dst=to.map, out_offset=to.offset, **reads, **ends, **fields))
            return
        between = Place(self.graph.map(*self._sizes(value)))
        self._append(kind(dst=between.map, **reads, **fields))
        self._copy(value, between, to, **ends, **common)

    def _conv(self, value: Value) -> None:
        mask = self.gating.first.get(value, -1)
        self._decide(mask)
        before = None if value.before is None else g.Affine(*value.before)
        fields: dict[str, Any] = {"weight": value.weight, "bias": value.bias, "window": value.window}
        fields["groups"] = value.groups
        if self.places.lacks(value.source, value) and (value.groups > 1 or not self.places.alone(value.source, value)):
            # With zeros in their places: a grouped one reads all channels, and who reads a part finds no list of them.
            source = Place(self.graph.map(*self._sizes(value.source)))
            self._copy(value.source, self.places.place(value.source), source, **self._common(value))
            fields["source"] = source
        self._finished(value, g.Conv2d, before=before, out_mask=mask, **fields)

    def _stem(self, value: Value) -> None:
        assert value.weight is not None
        fields: dict[str, Any] = {"in_channels": value.source.channels, "where": value.where}
        self._append(g.Stem(dst=self.places.of[value].map, weight=value.weight, **fields))
        self.pooled.add(self.places.of[value].map)

    def _depthwise(self, value: Value) -> None:
        self._finished(value, g.Depthwise, weight=value.weight, bias=value.bias, window=value.window)

    def _linear(self, value: Value) -> None:
        if value.op in ("mean", "open", "where"):
            return
        weight, bias = value.weight, value.bias
        assert weight is not None
        if value.op == "head":
            assert value.before is not None and bias is not None
            ends: dict[str, Any] = {"in_channels": value.source.channels, "out_offset": self.places.logits[value]}
            ends |= {"src": self._alone(value.source).map, "where": value.where}
            self.graph.add(g.Head(norm=g.Affine(*value.before), weight=weight, bias=bias, **ends))
            return
        fields = {"bias": bias, "activation": value.activation, **self._common(value)}
        if value not in self.places.vectors and value not in self.places.logits:
            weight = weight.view(*weight.shape[:2], 1, 1)
            source, to = self._alone(value.source), self.places.of[value]
            self._append(
                g.Conv2d(src=source.map, dst=to.map, out_offset=to.offset, in_channels=value.source.channels,
                         window=g.Window(1, 1), weight=weight, **fields)
            )  # fmt: skip
            return
        fields |= {"src": self._vector(value.source), "in_channels": value.source.channels, "weight": weight.flatten(1)}
        if value in self.places.logits:
            self.graph.add(g.Linear(out_offset=self.places.logits[value], **fields))
        if any(user.op != "where" for user in self.places.users[value]):
            made = self.vector_maps[value] = self.graph.map(value.channels, 1)
            self._append(g.FullyConnected(dst=made, **fields))

    def _affine(self, value: Value) -> None:
        assert value.weight is not None and value.bias is not None
        self._finished(value, g.Pointwise, affine=g.Affine(value.weight, value.bias))

    def _activation(self, value: Value) -> None:
        self._finished(value, g.Pointwise)

    def _scale(self, value: Value) -> None:
        self._finished(value, g.Pointwise, factor=self._vector(value.inputs[1]))

    def _upsample(self, value: Value) -> None:
        self._finished(value, g.Upsample, stride=int(value.number))

    def _max_pool(self, value: Value) -> None:
        self._pooled(value, g.MaxPool, window=value.window)

    def _avg_pool(self, value: Value) -> None:
        self._pooled(value, g.AvgPool, window=value.window, count_padding=value.counts_padding)

    def _mean(self, value: Value) -> None:
        rows, columns = value.source.shape[1:]
        self._pooled(value, g.AvgPool, window=g.Window(rows, columns))

    def _pooled(self, value: Value, kind: Any, **fields: Any) -> None:
        source, to = self.places.place(value.source), self.places.of[value]
        if source.map == to.map:
            source = Place(self.graph.map(*self._sizes(value.source)))
            self._copy(value.source, self.places.place(value.source), source, **self._common(value))
        mask = self.gating.first.get(value, -1)
        self._decide(mask)
        reads = {"src": source.map, "src_offset": source.offset, "in_channels": value.channels, "out_mask": mask}
        self._append(kind(dst=to.map, out_offset=to.offset, **reads, **fields, **self._common(value)))

    def _slice(self, value: Value) -> None:
        pass

    def _widen(self, value: Value) -> None:
        """Zeros around a map's channels, which may be those of every other pixel alone."""
        source, stride = value.source, 1
        if source.op == "max_pool" and source not in self.places.of:
            window, source = source.window, source.source
            stride = 1 if window is None else window.stride
        fields: dict[str, Any] = {"out_offset": int(value.number), "out_channels": value.channels, "stride": stride}
        self._whole(value, g.Subsample, source, **fields)

    def _transition(self, value: Value) -> None:
        assert value.weight is not None and value.before is not None
        guide = self._alone(value.inputs[1]).map if len(value.inputs) > 1 else -1
        fields: dict[str, Any] = {"norm": g.Affine(*value.before), "weight": value.weight, "guide": guide}
        self._whole(value, g.Transition, value.source, **fields)

    def _whole(self, value: Value, kind: Any, source: Value, **fields: Any) -> None:
        """Adds a node that reads a map from its first channel on, and leaves all that its own holds."""
        from_, to = self._alone(source), self.places.of[value]
        between = Place(self.graph.map(*self._sizes(value))) if to.offset else to
        where = {"where": value.where}
        self._append(kind(src=from_.map, dst=between.map, in_channels=source.channels, **fields, **where))
        if to.offset:
            self._copy(value, between, to, **self._common(value))

    def _dense_block(self, value: Value) -> None:
        assert value.block is not None
        x, map = value.source, self.places.of[value].map
        there = self.places.place(x) == (map, 0)
        if not there:
            self._copy(x, self.places.place(x), Place(map), **self._common(x))
        if not there or x.op not in ("stem", "transition"):  # which leave the pooled vector
            self._pool(x, map)
        block, first = value.block, self.gating.first[value]
        fields: dict[str, Any] = {"gate": block.kind, "merge": "concat", "first_gate": first, "where": value.where}
        self._append(g.DenseBlock(dst=map, in_channels=x.channels, layers=block.layers, **fields))

    def _update(self, value: Value) -> None:
        base, part = value.inputs
        map, _ = place = self.places.of[value]
        if self.places.place(base) != place:
            self._copy(base, self.places.place(base), place, **self._common(value))
        if self.places.accumulated.get(part) is not value:
            to = Place(map, place.offset + int(value.number))
            self._copy(part, self.places.place(part), to, accumulate=True, **self._common(value))

    def _open(self, value: Value) -> None:
        pass

    def _lstm(self, value: Value) -> None:
        """A recurrent gate is decided where its step is: steps must follow one another."""
        assert value.weight is not None and value.bias is not None and isinstance(value.cell, g.Recurrence)
        (where,) = (user for gate in self.places.users[value] for user in self.places.users[gate] if user.op == "where")
        outer, gate = self.gating.of(value), self.gating.first[where]
        if outer != self.gating.of(where):
            raise Unserved([value], "a gate governs what it opens and not its state")
        fields: dict[str, Any] = {"follows": len(value.inputs) > 1, "recurrence": value.cell, "first_gate": gate}
        self._decide(outer)
        source = self._vector(value.source)
        fields |= {"src": source, "in_channels": value.source.channels, "only_if": outer, "where": where.where}
        self.graph.add(g.Gate(weight=value.weight, bias=value.bias, **fields))
        self.decided.add(gate)

    def _cat(self, value: Value) -> None:
        map, offset = self.places.of[value]
        for part in value.inputs:
            if self.places.place(part) != (map, offset):
                self._copy(part, self.places.place(part), Place(map, offset), **self._common(value))
            offset += part.channels

    def _add(self, value: Value) -> None:
        first, second = sorted(value.inputs, key=lambda term: self.places.at[term])
        if self.places.accumulated.get(second) is value:
            return
        place, common = self.places.of[value], self._common(value)
        if self.places.place(second) == place:
            first, second = second, first
        if self.places.place(first) != place:
            self._copy(first, self.places.place(first), place, **common)
        ends = {"accumulate": True, "activation": value.activation}
        self._copy(second, self.places.place(second), place, **ends, **common)

    def _where(self, value: Value) -> None:
        _, computed, otherwise = value.inputs
        place, common = self.places.of[value], self._common(value)
        gate = self.gating.first[value]
        self._decide(gate)
        if self.places.place(otherwise) != place:
            self._copy(otherwise, self.places.place(otherwise), place, **common)
        if self.places.place(computed) != place:
            self._copy(computed, self.places.place(computed), place, **{**common, "only_if": gate})
