"""A graph as a plan of the GPU kernels: channels in whole groups, weights in the layouts of csrc/cuda/layout.h."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dsn_models.errors import UserError

from .. import _C
from ..graph import (
    KEEP_ZERO,
    Conv2d,
    DenseBlock,
    DenseLayer,
    Gate,
    Graph,
    Head,
    Load,
    Node,
    PathHead,
    Pointwise,
    Pool,
    PoolSums,
    Reads,
    Stem,
    Store,
    Transition,
    decided_gates,
    find_reads,
)
from .plan import Fields, Plan, fields_of, filled_up

_GROUP: int = _C.cuda.GROUP
ELEMENTS: dict[torch.dtype, int] = {
    torch.float32: _C.cuda.ELEMENTS["float32"],
    torch.float16: _C.cuda.ELEMENTS["float16"],
    torch.bfloat16: _C.cuda.ELEMENTS["bfloat16"],
}
_TAIL = 16  # bytes behind the last weight that a load of whole words may touch

# [(name, offset, shape, wide)] and size, in bytes; wide: float32 whatever the element.
_Layout = tuple[list[tuple[str, int, list[int], bool]], int]


def lower(graph: Graph, dtype: torch.dtype) -> Plan:
    """The plan of ``graph`` on a GPU.

    Args:
        graph: the network.
        dtype: of weights and activations: float32, float16 or bfloat16; gates, heads, biases and constants are float32.

    Raises:
        UserError: a node is of a kind that no GPU kernel serves. What does not fit a device, its schedule refuses.
    """
    graph = _sum_apart(graph)
    lowering, reads = _Lowering(graph, dtype), find_reads(graph)
    _refuse(graph, reads)
    code = [lowering.instruction(node, read) for node, read in zip(graph.nodes, reads, strict=True)]
    return Plan(graph, code, lowering.packed(), ELEMENTS[dtype])


def _sum_apart(graph: Graph) -> Graph:
    """The pooled vector of what a convolution with a mask writes is a node of its own: its kernel sums nothing."""
    nodes: list[Node] = []
    places: list[int] = []  # of each node, and behind the last
    for node, read in zip(graph.nodes, find_reads(graph), strict=True):
        places.append(len(nodes))
        if not isinstance(node, Conv2d) or not node.pool or not _is_chosen(node, read):
            nodes.append(node)
            continue
        channels = graph.maps[node.dst].channels
        nodes.append(replace(node, pool=False))
        nodes.append(PoolSums(src=node.dst, in_channels=channels, only_if=node.only_if, where=node.where))
    places.append(len(nodes))
    regions = [region._replace(begin=places[region.begin], end=places[region.end]) for region in graph.regions]
    return Graph(graph.maps, nodes, regions)


def _is_chosen(node: Conv2d, read: Reads) -> bool:
    """Whether it reads or writes by masks."""
    return bool(read.slices) or max(node.out_mask, read.in_mask) >= 0


def _refuse(graph: Graph, reads: list[Reads]) -> None:
    blocks = {node.dst for node in graph.nodes if isinstance(node, DenseBlock)}
    begun: set[int] = set()  # maps of dense blocks that have run
    filled: dict[int, int] = {}  # channels that a map was filled with as a whole
    decided = {-1}  # gates by which instructions may run
    by_plan = {gate for node in graph.nodes for gate in decided_gates(node)}
    for node, read in zip(graph.nodes, reads, strict=True):

        def serve(fits: bool, found: str, node: Node = node) -> None:
            if not fits:
                raise UserError(f"{node.where or node.op} {found}, which the GPU kernels do not serve")

        serve(node.only_if in decided, "waits for a gate that no gate node decides")
        decided |= {*decided_gates(node)}
        if isinstance(node, DenseBlock):
            serve(node.dst not in begun, "is the second dense block on one map")
            serve(node.in_channels == filled.get(node.dst), "leaves part of its map out")
            begun.add(node.dst)
        elif isinstance(node, (Load, Stem, Transition)) and not read.one_by_one:
            serve(node.dst not in filled, "fills a map that is filled already")
            filled[node.dst] = node.in_channels if isinstance(node, Load) else node.out_channels
        elif not isinstance(node, (Head, Store)):
            touched = {node.src, node.dst, getattr(node, "factor", -1)}
            serve(not blocks & touched, "reads or writes the state of a dense block")
            if node.dst >= 0:
                filled[node.dst] = graph.maps[node.dst].channels
        if (mask := getattr(node, "out_mask", -1)) >= 0:
            gates = {*range(mask, mask + (node.out_channels if isinstance(node, Conv2d) else node.in_channels))}
            serve(gates <= decided or not gates & by_plan, "chooses filters by gates of which the plan decides a part")
        if isinstance(node, Pool) and node.out_mask >= 0:
            serve(max(map(len, read.channels)) < 2, "puts a third mask on a channel")
        if isinstance(node, Conv2d) and _is_chosen(node, read):
            serve(node.src_offset % _GROUP == 0 and node.activated == 0, "has a mask, and reads a part of a map")
        if isinstance(node, Pointwise) and node.src == node.dst and read.slices:
            keeps = node.affine is None and node.activation in KEEP_ZERO
            serve(keeps, "makes filters that are off more than zero, in place")


@dataclass(frozen=True)
class _Channels:
    """Channels of a map: the first ones, then slices of equal width; both are padded to whole groups."""

    first: int
    slices: int = 0
    width: int = 0

    def spread(self, x: Tensor, dim: int) -> Tensor:
        """The channels of ``x`` along ``dim`` at their padded places, zeros between."""
        parts = x.split([self.first, *[self.width] * self.slices], dim)
        return torch.cat([_pad(part, dim, _GROUP) for part in parts], dim)

    def args(self) -> tuple[int, int, int]:
        return self.first, self.slices, self.width

    @property
    def total(self) -> int:
        return self.first + self.slices * self.width


class _Lowering:
    """Packs weights as nodes are visited, by layouts of the native core."""

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        self.graph, self.dtype, self.element = graph, dtype, ELEMENTS[dtype]
        self.size = 0
        self._chunks: list[Tensor] = []
        self._shared: dict[int, int] = {}  # where each recurrence is
        self._channels = [_Channels(map.channels) for map in graph.maps]
        for node in graph.nodes:
            if isinstance(node, DenseBlock):
                layers = (len(node.layers), node.added) if node.added else ()
                self._channels[node.dst] = _Channels(node.in_channels, *layers)
            elif isinstance(node, Load):
                self._channels[node.dst] = _Channels(node.in_channels)

    def instruction(self, node: Node, reads: Reads) -> Fields:
        if isinstance(node, Transition) and reads.one_by_one:
            return self._means(node, reads)
        fields = fields_of(node, reads)
        if isinstance(node, Gate) and node.recurrence is not None:
            shared = node.recurrence
            if id(shared) not in self._shared:
                self._shared[id(shared)] = self._add(_C.cuda.recurrence_layout(), **shared._asdict())
            fields["shared"] = self._shared[id(shared)]
        fields["weights"] = self.size
        pack: Callable[[Any, Reads], None] | None = getattr(self, f"pack_{node.op}", None)
        if pack is not None:
            pack(node, reads)
        elif values := node.listed_weights():
            layout = _C.cuda.listed_layout(fields)
            self._add(layout, **filled_up(values, layout))
        return fields

    def packed(self) -> Tensor:
        """All weights, uint8."""
        return torch.cat([*self._chunks, torch.zeros(_TAIL, dtype=torch.uint8)])

    def _add(self, layout: _Layout, **values: Tensor) -> int:
        """Appends weights by the names of their layout; returns where they begin, in bytes."""
        fields, size = layout
        chunk = torch.zeros(size, dtype=torch.uint8)
        for name, offset, shape, wide in fields:
            if math.prod(shape) == 0:
                continue
            value = values[name].to(torch.float32 if wide else self.dtype).contiguous()
            if list(value.shape) != shape:
                raise ValueError(f"packing {name}: got shape {list(value.shape)}, the layout says {shape}")
            data = value.flatten().view(torch.uint8)
            chunk[offset : offset + data.numel()] = data
        self._chunks.append(chunk)
        self.size += size
        return self.size - size

    def _means(self, node: Transition, reads: Reads) -> Fields:
        """A transition whose input channels are chosen one by one is a convolution of means."""
        flags = sum(_C.FLAGS[name] for name in ("normalise", "live", "means"))
        sizes = {"taps": 1, "columns": 1, "stride": 2, "flags": flags, "weights": self.size}
        bias = torch.zeros(node.out_channels, dtype=torch.float64)
        self._add_conv2d(node.weight, bias, 0, 1, node.norm, chosen=True, live=True)
        return fields_of(node, reads) | {"op": _C.OPS["conv2d"], **sizes}

    def pack_stem(self, node: Stem, reads: Reads) -> None:
        weight = node.weight.flatten(1)[:, :, None]  # channels and taps are one depth
        self._add(
            _C.cuda.stem_layout(node.in_channels, node.out_channels, self.element),
            weight=_conv(weight, lambda x, dim: _pad(x, dim, _C.cuda.STEP)),
        )

    def pack_dense_block(self, node: DenseBlock, reads: Reads) -> None:
        whole = self._channels[node.dst]
        gates = torch.zeros(len(node.layers), whole.total, dtype=torch.float64)
        biases = torch.zeros(len(node.layers), dtype=torch.float64)
        for row, layer in enumerate(node.layers):
            if layer.gate is not None and layer.gate_bias is not None:
                gates[row, : len(layer.gate)], biases[row] = layer.gate, layer.gate_bias
        self._add(_C.cuda.gates_layout(*whole.args(), len(node.layers)), gate=whole.spread(gates, 1), gate_bias=biases)
        merge = _C.MERGES[node.merge]
        for i, layer in enumerate(node.layers):
            before = replace(whole, slices=i if node.added else 0)
            layout = _C.cuda.layer_layout(*before.args(), node.out_channels, node.bottleneck, merge, self.element)
            self._add(layout, **self._layer_fields(node, layer, before))

    def _layer_fields(self, node: DenseBlock, layer: DenseLayer, before: _Channels) -> dict[str, Tensor]:
        scale, shift = layer.norm
        fields = {"norm": _norm(before.spread(scale, 0), before.spread(shift, 0))}
        if layer.reduce is None or layer.reduce_bias is None:
            constants = _slice_constants(layer.conv, shift, before)  # [slices, taps, O]
            return fields | {"conv": _conv(layer.conv, before.spread), "constants": _columns(constants, 2)}
        fields |= {
            "reduce": _conv(layer.reduce, before.spread),
            "reduce_bias": _columns(layer.reduce_bias, 0),
            "constants": _columns(_slice_constants(layer.reduce, shift, before).squeeze(1), 1),
            "conv": _conv(layer.conv, _columns),  # of what a convolution before has written
        }
        if layer.expand is not None and layer.conv_bias is not None:
            fields |= {"conv_bias": _columns(layer.conv_bias, 0), "expand": _conv(layer.expand, _columns)}
        return fields

    def pack_transition(self, node: Transition, reads: Reads) -> None:
        parts = [self._channels[node.src], self._channels[node.guide] if node.guide >= 0 else _Channels(0)]
        sizes = [part.total for part in parts]

        def spread(x: Tensor, dim: int) -> Tensor:
            return torch.cat([c.spread(p, dim) for c, p in zip(parts, x.split(sizes, dim), strict=True)], dim)

        (scale, shift), weights = node.norm, node.weight.split(sizes, 1)
        constants = [_slice_constants(*each) for each in zip(weights, shift.split(sizes), parts, strict=True)]
        self._add(
            _C.cuda.transition_layout(*parts[0].args(), *parts[1].args(), node.out_channels, self.element),
            norm=_norm(spread(scale, 0), spread(shift, 0)),
            weight=_conv(node.weight, spread),
            constants=_columns(torch.cat(constants).squeeze(1), 1),
        )

    def pack_head(self, node: Head, reads: Reads) -> None:
        source, live, (scale, shift) = self._channels[node.src], reads.one_by_one, node.norm
        by_slice = _slice_constants(node.weight[:, :, None], shift, source).squeeze(1)
        self._add(
            _C.cuda.head_layout(*source.args(), node.out_channels, live),
            norm=_norm(source.spread(scale, 0), source.spread(shift, 0)),
            weight=source.spread(node.weight, 1),
            bias=node.bias,
            constants=shift.relu()[:, None] * node.weight.T if live else by_slice,
        )

    def pack_path_head(self, node: PathHead, reads: Reads) -> None:
        source, (scale, shift) = self._channels[node.src], node.norm
        self._add(
            _C.cuda.path_head_layout(*source.args(), node.out_channels, node.gates),
            norm=_norm(source.spread(scale, 0), source.spread(shift, 0)),
            weight=source.spread(node.weight, 1),
            bias=node.bias,
            path=source.spread(node.path.permute(2, 0, 1), 2),
            path_bias=source.spread(node.path_bias, 1),
        )

    def pack_conv2d(self, node: Conv2d, reads: Reads) -> None:
        live = bool(reads.slices)
        chosen = live or max(node.out_mask, reads.in_mask) >= 0
        self._add_conv2d(node.weight, node.bias, node.src_offset, node.groups, node.before, chosen, live)

    def _add_conv2d(
        self, weight: Tensor, bias: Tensor, src_offset: int, groups: int, norm: Any, chosen: bool, live: bool
    ) -> None:
        """Adds the weights of a convolution, whose groups are products side by side."""
        taps = weight.flatten(2)
        out_channels, in_channels, count = taps.shape
        sizes = src_offset, in_channels, out_channels // groups, count, groups
        normalised = norm is not None
        layout = _C.cuda.conv2d_layout(*sizes, normalised, chosen, live and normalised, self.element)
        places = next(shape[1] * _GROUP for name, _, shape, _ in layout[0] if name == "weight")

        def spread(product: int) -> Callable[[Tensor, int], Tensor]:
            front = (src_offset + product * in_channels) % _GROUP  # channels of a group before the first that is read

            def padded(x: Tensor, dim: int) -> Tensor:
                before, behind = list(x.shape), list(x.shape)
                before[dim], behind[dim] = front, places - front - x.shape[dim]
                return torch.cat([x.new_zeros(before), x, x.new_zeros(behind)], dim)

            return padded

        fields = {
            "weight": torch.cat([_conv(part, spread(i)) for i, part in enumerate(weight.chunk(groups))]),
            "bias": torch.cat([_columns(part, 0) for part in bias.chunk(groups)]),
        }
        if norm is not None:
            norms = zip(*(part.chunk(groups) for part in norm), strict=True)
            fields["norm"] = torch.cat([_norm(*(spread(i)(part, 0) for part in both)) for i, both in enumerate(norms)])
        if chosen:
            fields["selectable"] = _columns(taps.permute(2, 1, 0), 2)
        if live and norm is not None:
            fields["constants"] = _columns((norm.shift.relu() * taps.sum(2)).T, 1)
        self._add(layout, **fields)


def _slice_constants(weight: Tensor, shift: Tensor, channels: _Channels) -> Tensor:
    """What each skipped slice gives its consumer, ``relu(shift)`` times its weights: [slices, taps, O]."""
    products = (weight.flatten(2) * shift.relu()[None, :, None])[:, channels.first :]
    if not channels.slices:
        return products.new_zeros(0, products.shape[2], products.shape[0])
    return products.unflatten(1, (channels.slices, channels.width)).sum(2).permute(1, 2, 0)


def _pad(x: Tensor, dim: int, multiple: int) -> Tensor:
    """``x`` with zeros up to a multiple of entries along ``dim``."""
    shape = list(x.shape)
    shape[dim] = -x.shape[dim] % multiple
    return torch.cat([x, x.new_zeros(shape)], dim) if shape[dim] else x


def _columns(x: Tensor, dim: int) -> Tensor:
    return _pad(x, dim, _C.cuda.COLUMNS)


def _conv(weight: Tensor, spread: Callable[[Tensor, int], Tensor]) -> Tensor:
    """[O, I, ...] to [taps, groups, columns, 4]."""
    padded = _columns(spread(weight.flatten(2), 1), 0)  # [columns, places, taps]
    return padded.unflatten(1, (-1, _GROUP)).permute(3, 1, 0, 2)


def _norm(scale: Tensor, shift: Tensor) -> Tensor:
    """Both [places], to [groups, 2, 4]."""
    return torch.stack([scale, shift]).unflatten(1, (-1, _GROUP)).transpose(0, 1)
