"""What a gate governs: the values that nothing but its ``computed`` needs."""

from __future__ import annotations

from .values import MASKED, Program, Unserved, Value, ancestors


class Gating:
    """The gates of a program, and by which of them each value is computed.

    Each ``where`` has a gate of its own, each convolution with a mask one for each filter, and a block one for each
    layer; they are numbered in order.

    Attributes:
        first: the number of a ``where``'s gate, or of the first of a convolution's or block's.
        names: of the gates, by what each belongs to: as many times as it has gates.
        thresholds: above which a score opens each.
        governed: what each ``where``'s gate governs.
    """

    def __init__(self, program: Program) -> None:
        self.first: dict[Value, int] = {}
        self.names: list[str] = []
        self.thresholds: list[float] = []
        for value in _by_number(program.values):
            if value.block is not None:
                self.first[value] = len(self.names)
                self.names += value.block.names
                self.thresholds += [gate.number for gate in value.block.gates]
            gate = gate_of(value)
            if gate is not None:
                count = 1 if value.op == "where" else value.channels
                self.first[value] = len(self.names)
                self.names += [value.where or value.op] * count
                self.thresholds += [gate.number] * count
        self.governed: dict[Value, set[Value]] = {}
        self._innermost: dict[Value, int] = {}
        sizes: dict[Value, int] = {}
        for where in (value for value in program.values if value.op == "where"):
            needed = ancestors(program.outputs, without=(where, 1))
            governed = self.governed[where] = ancestors([where.inputs[1]]) - needed
            for value in governed:
                if value not in sizes or len(governed) < sizes[value]:
                    sizes[value] = len(governed)
                    self._innermost[value] = self.first[where]
        self._runs: list[range] = []
        before: tuple[Value, int, int] | None = None  # scores, the first behind those of a run, and the outer gate
        for value, first in self.first.items():
            if (gate := gate_of(value)) is None:
                continue
            if before == (gate.source, gate.first, self.of(value)) and self._runs[-1].stop == first:
                self._runs[-1] = range(self._runs[-1].start, first + gate.channels)
            else:
                self._runs.append(range(first, first + gate.channels))
            before = (gate.source, gate.first + gate.channels, self.of(value))

    @property
    def count(self) -> int:
        return len(self.names)

    def column(self, gate: Value) -> int:
        """The number of a gate, or of the first of a mask.

        Raises:
            Unserved: nothing in the program is opened by it, or only where another gate is open.
        """
        for value, first in self.first.items():
            gates = value.block.gates if value.block is not None else (gate_of(value),)
            if gate in gates and self.of(value) < 0:
                return first + gates.index(gate)
        raise Unserved([gate], "torch reads a gate by which nothing runs, or within another's")

    def run_of(self, gate: int) -> range:
        """The gates around one that scores side by side decide, all where the same outer gate is open."""
        return next(run for run in self._runs if gate in run)

    def of(self, value: Value) -> int:
        """The innermost gate without which nobody needs a value; -1: it is always needed."""
        return self._innermost.get(value, -1)


def _by_number(values: list[Value]) -> list[Value]:
    """Values in order, but what one list of scores decides together, as the scores are."""
    masked: dict[Value, list[Value]] = {}
    for value in values:
        gate = gate_of(value)
        if gate is not None and value.op != "where":
            masked.setdefault(gate.source, []).append(value)
    rank = {value: float(i) for i, value in enumerate(values)}
    for together in masked.values():
        first = min(rank[value] for value in together)
        for i, value in enumerate(sorted(together, key=lambda v: v.inputs[1].first)):
            rank[value] = first + (i + 1) / (len(together) + 1)
    return sorted(values, key=lambda value: rank[value])


def gate_of(value: Value) -> Value | None:
    """What opens a ``where``, or chooses a convolution's filters or a pool's channels."""
    if value.op == "where":
        return value.inputs[0]
    return value.inputs[1] if value.op in MASKED and len(value.inputs) > 1 else None


def decide_first(program: Program) -> None:
    """Brings values into an order in which a gate, and what stands where it is shut, are known before anything that
    only it lets run: that writes over what stands there."""
    gating = Gating(program)
    ahead = {gating.first[where]: (where.inputs[0], where.inputs[2]) for where in gating.governed}
    ordered: dict[Value, None] = {}

    def visit(value: Value) -> None:
        if value in ordered:
            return
        for needed in (*ahead.get(gating.of(value), ()), *value.inputs):
            visit(needed)
        ordered[value] = None

    for value in program.values:
        visit(value)
    program.values = list(ordered)
