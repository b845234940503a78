"""What follows from a graph as a whole, worked out once: which channels may hold no data, and what each node costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .graph import Graph
from .nodes import Conv2d, Decide, DenseBlock, Gate, Gates, Linear, Node, Pointwise, Transition, chosen_channels


@dataclass(frozen=True)
class Reads:
    """What a node finds in the maps that it reads.

    Attributes:
        slices: channels of ``src``, and behind them of a guide, that hold data or not together: of a layer that a gate
            shuts, or of a filter that is off. Whoever reads them is told.
        in_mask: the mask by which one convolution wrote all of ``src``; -1 if none did.
        channels: for each channel that is read, a guide's behind those of ``src``, the gates by which it holds data.
        one_by_one: whether masks chose single channels of ``src``, as filters are chosen; layers of a dense block, of
            one channel too, are told by their block.
    """

    slices: tuple[range, ...] = ()
    in_mask: int = -1
    channels: tuple[Gates, ...] = ()
    one_by_one: bool = False


def find_reads(graph: Graph) -> list[Reads]:
    """What each node reads, in the order of the nodes."""
    slices: dict[int, list[range]] = {}
    gates_of: dict[int, list[Gates]] = {}
    mask_of: dict[int, int] = {}
    blocks = {node.dst for node in graph.nodes if isinstance(node, DenseBlock)}
    found = []

    def write(map: int, offset: int, channels: list[Gates]) -> None:
        kept = slices.get(map, []) if offset else []
        new = [range(offset + c, offset + c + 1) for c in range(len(channels))] if any(channels) else []
        slices[map], mask_of[map] = kept + new, -1
        gates_of[map] = read(map, 0, offset) + channels

    def read(map: int, offset: int, channels: int) -> list[Gates]:
        known = gates_of.get(map, [])[offset : offset + channels]
        return known + [()] * (channels - len(known))

    for node in graph.nodes:
        own, channels = list(slices.get(node.src, [])), read(node.src, getattr(node, "src_offset", 0), node.in_channels)
        if isinstance(node, Transition) and node.guide >= 0:  # its channels follow the branch's own
            own += [range(s.start + node.in_channels, s.stop + node.in_channels) for s in slices.get(node.guide, [])]
            channels += read(node.guide, 0, graph.maps[node.guide].channels)
        one_by_one = bool(own) and node.src not in blocks
        found.append(Reads(tuple(own), mask_of.get(node.src, -1), tuple(channels), one_by_one))
        if isinstance(node, DenseBlock):
            starts = [node.channels_before(layer) for layer in range(len(node.layers))] if node.added else []
            slices[node.dst] = [range(start, start + node.added) for start in starts]
            taken = chosen_channels(-1 if node.gate == "none" else node.first_gate, len(node.layers))
            layers = [gate for gate in taken for _ in range(node.added)]
            gates_of[node.dst] = read(node.dst, 0, node.in_channels) + layers
        elif written := node.written(channels):
            write(node.dst, *written)
            if isinstance(node, Conv2d) and node.out_offset == 0:
                mask_of[node.dst] = node.out_mask
    return found


def gate_columns(channels: Sequence[Gates], always: int) -> Tensor:
    """The gates of each channel, int64 [C, depth]; ``always``, a gate that is always on, fills them up."""
    depth = max([1, *map(len, channels)])
    rows = [[*gates, *[always] * (depth - len(gates))] for gates in channels]
    return torch.tensor(rows, dtype=torch.int64).view(-1, depth)


class Work(NamedTuple):
    """MACs of a node, or of one layer of a dense block, for a batch of gates.

    Attributes:
        op: the node's name; ``"layer"`` of a dense block's layer, ``"gate"`` of what decides on it.
        index: of the node in the graph.
        gate: the gate that decides whether it runs, the first of a convolution's filters; -1 if it always runs.
        ran: fraction of it that ran: 0 or 1, of a convolution whose filters are chosen anything between. [B].
        macs: executed, int64 [B].
        layer: of a dense block, -1 for its gates and for every other node.
        inputs: channels that it reads and that hold data, int64 [B]; None for the gates of a dense block.
        filters: of a convolution, those that are on, int64 [B].
    """

    op: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    gate: int
    ran: Tensor
    macs: Tensor
    layer: int = -1
    inputs: Tensor | None = None
    filters: Tensor | None = None


def count_macs(graph: Graph, gates: Tensor) -> Tensor:
    """MACs the kernels execute for gates [B, L] of 0 and 1: int64 [B].

    Counted: stems, gates, layers that run over channels that hold data, transitions after pooling, convolutions that
    run (chosen filters times input channels that hold data), heads.
    """
    total = gates.new_zeros(gates.shape[0], dtype=torch.int64)
    return total + sum(work.macs for work in trace(graph, gates))


def trace(graph: Graph, gates: Tensor) -> Iterator[Work]:
    """What :func:`count_macs` counts, step by step, for gates [B, L] of 0 and 1."""
    gates = gates.long()
    none, all_ = gates.new_zeros(gates.shape[0]), gates.new_ones(gates.shape[0])
    for index, (node, reads) in enumerate(zip(graph.nodes, find_reads(graph), strict=True)):
        if isinstance(node, DenseBlock):
            channels = none + node.in_channels
            for layer in range(len(node.layers)):
                gate = node.first_gate + layer if node.gate != "none" else -1
                taken = gates[:, gate] if gate >= 0 else all_
                if gate >= 0:
                    yield Work("gate", index, -1, all_, none + node.channels_before(layer))
                macs = taken * node.layer_macs(graph.maps[node.dst].pixels, channels)
                yield Work("layer", index, gate, taken, macs, layer, channels)
                channels = channels + taken * node.added
        elif isinstance(node, Conv2d):
            on = _count_live(chosen_channels(node.out_mask, node.out_channels), gates)
            inputs = _count_live(reads.channels, gates)
            runs = gates[:, node.only_if] if node.only_if >= 0 else all_
            macs = runs * graph.maps[node.dst].pixels * node.window.taps * on * inputs // node.groups
            ran = runs * on.double() / node.out_channels
            yield Work(node.op, index, max(node.only_if, node.out_mask), ran, macs, inputs=inputs, filters=on)
        else:
            inputs, gate = _count_live(reads.channels, gates), node.only_if
            runs = gates[:, gate] if gate >= 0 else all_
            macs = runs * node.macs(graph.maps[node.dst if node.dst >= 0 else node.src].pixels, inputs)
            yield Work(node.op, index, gate, runs, macs, inputs=inputs)


def _count_live(channels: Sequence[Gates], gates: Tensor) -> Tensor:
    """How many channels hold data for gates int64 [B, L]: int64 [B]."""
    if not any(channels):
        return gates.new_full((len(gates),), len(channels))
    known = torch.cat([gates, gates.new_ones(len(gates), 1)], 1)
    return known[:, gate_columns(channels, gates.shape[1]).to(gates.device)].amin(2).sum(1)


def last_readers(graph: Graph) -> list[list[int]]:
    """For each node, the maps that no later one touches."""

    def touched(node: Node) -> list[int]:
        return [
            map for map in (node.src, node.dst, *(getattr(node, name, -1) for name in ("guide", "factor"))) if map >= 0
        ]

    last = {map: i for i, node in enumerate(graph.nodes) for map in touched(node)}
    return [[map for map, i in last.items() if i == at] for at in range(len(graph.nodes))]


def pooled_maps(graph: Graph) -> set[int]:
    """Maps whose pooled vector is read: by gates, linear layers, as factors, and by the gates of a dense block."""
    read = {node.src for node in graph.nodes if isinstance(node, (Gate, Decide, Linear))}
    read |= {node.factor for node in graph.nodes if isinstance(node, Pointwise) and node.factor >= 0}
    return read | {node.dst for node in graph.nodes if isinstance(node, DenseBlock)}
