"""A lowered network: the record that one backend's kernels run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _C
from ..costs import NO_COSTS, Costs
from ..graph import Conv2d, DenseBlock, Gate, Graph, Node, PathHead, Pointwise, Reads, Windowed

_NAMES = [name for name, _ in _C.INSTRUCTION_FIELDS]
# Fields of an instruction by name, one of ``_C.INSTRUCTION_FIELDS``; what is left out has its default.
Fields = dict[str, int]


@dataclass(frozen=True, eq=False)
class Plan:
    """Instructions with the offsets of their weights, for one backend.

    Attributes:
        graph: what was lowered; instruction i is its node i.
        code: the fields of each instruction.
        weights: as the backend's kernels read them: float32, on a GPU uint8.
        element: of weights and activations on a GPU, one of ``_C.cuda.ELEMENTS``.
        costs: by which the CPU takes samples side by side.
    """

    graph: Graph
    code: list[Fields]
    weights: Tensor
    element: int = 0
    costs: Costs = NO_COSTS

    def words(self, graph: Graph | None = None) -> Tensor:
        """What ``run_plan`` takes, int64: csrc/plan/plan.h has the order. ``graph``: the same of another size."""
        graph = graph or self.graph
        sizes = [n for map in graph.maps for n in map]
        regions = [n for region in graph.regions for n in (_C.REGIONS[region.kind], region.begin, region.end)]
        code = [fields.get(name, default) for fields in self.code for name, default in _C.INSTRUCTION_FIELDS]
        costs = [round(cost * 1e18) for cost in self.costs]
        return torch.tensor([_C.PLAN_FORMAT, len(graph.maps), len(graph.regions), *costs, *sizes, *regions, *code])

    def without_weights(self) -> Plan:
        """The same with a graph whose tensors have a shape alone, and no packed weights."""
        return replace(self, graph=self.graph.without_weights(), weights=torch.empty(0, device="meta"))


def steps(graph: Graph) -> Iterator[tuple[int, int]]:
    """What a timed run tells apart: (node, -1), and for a dense block then (node, layer)."""
    for index, node in enumerate(graph.nodes):
        for layer in range(-1, len(node.layers) if isinstance(node, DenseBlock) else 0):
            yield index, layer


def fields_of(node: Node, reads: Reads) -> Fields:
    """What every backend's instruction says of a node, but for its weights."""
    fields = {name: value for name in _NAMES if type(value := getattr(node, name, None)) is int}
    fields["op"] = _C.OPS[node.op]
    fields["activation"] = _C.ACTIVATIONS[getattr(node, "activation", "none")]
    flags = {name: getattr(node, name, False) for name in ("accumulate", "pool", "count_padding")}
    if isinstance(node, DenseBlock):
        fields |= {"layers": len(node.layers), "gate": _C.GATES[node.gate], "merge": _C.MERGES[node.merge]}
    elif isinstance(node, PathHead):
        fields["layers"] = node.gates
    elif isinstance(node, Gate):
        fields["gate"], flags["accumulate"] = _C.GATES[node.gate], node.follows
    elif isinstance(node, Windowed):
        window = node.window
        fields |= {"taps": window.taps, "stride": window.stride, "dilation": window.dilation}
        if not (isinstance(node, Conv2d) and window.keeps_size):
            fields |= {"columns": window.columns, "pad_rows": window.pad_rows, "pad_columns": window.pad_columns}
    elif isinstance(node, Pointwise):
        flags["affine"] = node.affine is not None
    if isinstance(node, Conv2d):
        fields["in_mask"] = reads.in_mask
        flags |= {"normalise": node.before is not None, "live": bool(reads.slices)}
    fields["flags"] = sum(_C.FLAGS[name] for name, on in flags.items() if on)
    return fields


def filled_up(values: dict[str, Tensor], layout: tuple[list[Any], int]) -> dict[str, Tensor]:
    """``values`` of a layout's fields, each with zeros behind what it has along a dimension."""
    shapes = {name: shape for name, _, shape, *_ in layout[0]}

    def fill(value: Tensor, shape: list[int]) -> Tensor:
        missing = zip(reversed(value.shape), reversed(shape), strict=True)
        return F.pad(value, [n for have, want in missing for n in (0, want - have)])

    return {name: fill(value, shapes[name]) for name, value in values.items()}
