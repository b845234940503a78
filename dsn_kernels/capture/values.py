"""A network as values, each computed once from others: an exported program before its maps are laid out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from torch import Tensor

from ..graph import DenseLayer, Recurrence, Window

# What a mask may choose channels of: it is their second input.
MASKED = ("conv", "max_pool", "avg_pool")
# Per sample: (channels, height, width), or (channels,) of a vector.
Shape = tuple[int, ...]


class Cell(NamedTuple):
    """An LSTM's weights, float64, in torch's order of gates: of its input, of its state, and the sum of both biases."""

    input: Tensor
    hidden: Tensor
    bias: Tensor


class Block(NamedTuple):
    """Gated dense layers that follow one another: their gates' kind, and name and gate of each."""

    layers: tuple[DenseLayer, ...]
    kind: str
    names: tuple[str, ...]
    gates: tuple[Value, ...]


class Unserved(Exception):
    """Values that only seemed to have a kernel; its text is the reason."""

    def __init__(self, values: list[Value], reason: str) -> None:
        super().__init__(reason)
        self.values = values


@dataclass(eq=False, repr=False)
class Value:
    """What one operation computes.

    Attributes:
        op: of the table in :mod:`.translate`.
        inputs: the values that it is computed from.
        shape: of one sample's.
        where: the module that computes it, as in ``"layer1.0.conv1"``.
        activation: what follows, one of :data:`dsn_kernels.graph.ACTIVATIONS`.
        weight, bias: of a convolution or linear map; scale and shift of an affine one: float64.
        window: of a convolution or pool.
        groups: of a convolution.
        before: scale and shift of a BN-ReLU of a convolution's input, float64.
        number: what else an operation needs: the first channel of a slice, the factor of an enlargement, the threshold
            of a gate.
        first: of a gate, the first channel of the scores that open it.
        counts_padding: whether an average pool counts zeros around the map.
        cell: of an LSTM; with the projection once it decides a gate.
        block: of dense layers.
        is_decision: of a tensor that enters: it holds 0 and 1, by which gates open.
    """

    op: str
    inputs: list[Value]
    shape: Shape
    where: str = ""
    activation: str = "none"
    weight: Tensor | None = None
    bias: Tensor | None = None
    window: Window | None = None
    groups: int = 1
    before: tuple[Tensor, Tensor] | None = None
    number: float = 0
    first: int = 0
    counts_padding: bool = False
    cell: Cell | Recurrence | None = None
    block: Block | None = None
    is_decision: bool = False

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def is_vector(self) -> bool:
        """Whether there is one number for each channel."""
        return prod(self.shape[1:]) == 1

    @property
    def may_lack(self) -> bool:
        """Whether some of its channels may hold no data where it lies: a mask chose the filters that leave them."""
        if self.op == "dense_block" or (self.op in MASKED and len(self.inputs) > 1):
            return True
        return self.op in ("slice", "cat", "max_pool", "avg_pool") and any(read.may_lack for read in self.inputs)

    @property
    def source(self) -> Value:
        return self.inputs[0]


def decided_before(entered: Value) -> Value:
    """The gates that a tensor opens which enters a plan and holds 0 and 1."""
    entered.is_decision = True
    return Value("open", [entered], entered.shape, number=0.5)


@dataclass(eq=False, repr=False)
class Program:
    """Values in an order in which they can be computed.

    Attributes:
        inputs: tensors that enter.
        outputs: those that leave.
        shapes: of the outputs, one sample's.
        gates: those that leave.
    """

    values: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    gates: list[Value] = field(default_factory=list)

    def users(self) -> dict[Value, list[Value]]:
        """The values that read each, in order; an output is not among its own."""
        found: dict[Value, list[Value]] = {value: [] for value in self.values}
        for value in self.values:
            for read in dict.fromkeys(value.inputs):
                found[read].append(value)
        return found

    def replace(self, old: Value, new: Value, users: dict[Value, list[Value]]) -> None:
        """Puts ``new`` in the place of ``old`` wherever that is read; ``users`` stays what :meth:`users` gives, but for
        the order of the new one's, and ``old`` reads nothing any more."""
        for value in users[old]:
            value.inputs = [new if read is old else read for read in value.inputs]
        self.outputs = [new if value is old else value for value in self.outputs]
        users[new] = list(dict.fromkeys([*(user for user in users[new] if user is not old), *users.pop(old)]))
        users[old] = []
        for read in old.inputs:
            users[read] = [user for user in users[read] if user is not old]
        old.inputs = []

    def prune(self) -> None:
        """Leaves out what no output needs."""
        needed = ancestors(self.outputs)
        self.values = [value for value in self.values if value in needed or value in self.inputs]


def ancestors(values: Iterable[Value], without: tuple[Value, int] | None = None) -> set[Value]:
    """All that values are computed from, themselves included; ``without`` one edge: input i of a value."""
    found: set[Value] = set()
    left = list(values)
    while left:
        value = left.pop()
        if value in found:
            continue
        found.add(value)
        left += [read for i, read in enumerate(value.inputs) if without is None or without != (value, i)]
    return found


def in_order(values: Sequence[Value]) -> list[Value]:
    """What values are computed from, and they, each after what it reads."""
    found: dict[Value, None] = {}
    left = list(reversed(values))
    while left:
        value = left[-1]
        missing = [read for read in value.inputs if read not in found]
        if missing and value not in found:
            left += reversed(missing)
        else:
            found.setdefault(left.pop())
    return list(found)
