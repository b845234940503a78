"""What follows from a graph as a whole, worked out once: which channels may hold no data, and what each node costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .nodes import (
    Conv2d,
    DenseBlock,
    Gate,
    Graph,
    Head,
    Linear,
    Load,
    Node,
    PathHead,
    Pool,
    Stem,
    Subsample,
    Transition,
)


@dataclass(frozen=True)
class Reads:
    """What a node finds in the maps that it reads.

    Attributes:
        slices: channels of ``src``, and behind them of a guide, that hold data or not together: of a layer that a gate
            shuts, or of a filter that is off. Whoever reads them is told.
        in_mask: the mask by which one convolution wrote all of ``src``; -1 if none did.
    """

    slices: tuple[range, ...] = ()
    in_mask: int = -1

    @property
    def one_by_one(self) -> bool:
        """Whether single channels may hold no data, as filters leave them."""
        return any(len(channels) == 1 for channels in self.slices)


def find_reads(graph: Graph) -> list[Reads]:
    """What each node reads, in the order of the nodes."""
    slices: dict[int, list[range]] = {}
    mask_of: dict[int, int] = {}
    found = []

    def write(map: int, offset: int, channels: int, chosen: bool) -> None:
        kept = slices.get(map, []) if offset else []
        new = [range(offset + c, offset + c + 1) for c in range(channels)] if chosen else []
        slices[map], mask_of[map] = kept + new, -1

    for node in graph.nodes:
        own = list(slices.get(node.src, []))
        if isinstance(node, Transition) and node.guide >= 0:  # its channels follow the branch's own
            own += [range(s.start + node.in_channels, s.stop + node.in_channels) for s in slices.get(node.guide, [])]
        found.append(Reads(tuple(own), mask_of.get(node.src, -1)))
        if isinstance(node, Load):
            write(node.dst, 0, node.in_channels, node.out_mask >= 0)
        elif isinstance(node, DenseBlock):
            starts = [node.channels_before(layer) for layer in range(len(node.layers))] if node.added else []
            slices[node.dst] = [range(start, start + node.added) for start in starts]
        elif isinstance(node, Conv2d) and not node.accumulate:
            write(node.dst, node.out_offset, node.out_channels, node.out_mask >= 0)
            mask_of[node.dst] = node.out_mask if node.out_offset == 0 else -1
        elif isinstance(node, Pool):
            write(node.dst, node.out_offset, node.in_channels, node.out_mask >= 0 or bool(slices.get(node.src)))
        elif isinstance(node, (Stem, Transition, Subsample)):
            write(node.dst, 0, node.out_channels, False)
    return found


class Work(NamedTuple):
    """MACs of a node, or of one layer of a dense block, for a batch of gates.

    Attributes:
        op: the node's name; ``"layer"`` of a dense block's layer, ``"gate"`` of what decides on it.
        index: of the node in the graph.
        gate: the gate that decides whether it runs, the first of a convolution's filters; -1 if it always runs.
        ran: fraction of it that ran: 0 or 1, of a convolution whose filters are chosen anything between. [B].
        macs: executed, int64 [B].
        layer: of a dense block, -1 for its gates and for every other node.
        inputs, filters: of a convolution: channels that it reads and filters that are on, int64 [B].
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
    reads, live = find_reads(graph), _Live(gates)
    for index, node in enumerate(graph.nodes):
        if isinstance(node, DenseBlock):
            channels = none + node.in_channels
            for layer in range(len(node.layers)):
                gate = node.first_gate + layer if node.gate != "none" else -1
                taken = gates[:, gate] if gate >= 0 else all_
                if gate >= 0:
                    yield Work("gate", index, -1, all_, none + node.channels_before(layer))
                macs = taken * _layer_macs(node, graph.maps[node.dst].pixels, channels)
                yield Work("layer", index, gate, taken, macs, layer)
                channels = channels + taken * node.added
            live.append_layers(node)
        elif isinstance(node, Conv2d):
            filters = live.chosen(node.out_mask, node.out_channels)
            inputs = live.count(node.src) if reads[index].slices else none + node.in_channels
            runs, on = gates[:, node.only_if] if node.only_if >= 0 else all_, filters.sum(1)
            macs = runs * graph.maps[node.dst].pixels * node.window.taps * on * inputs
            ran = runs * filters.double().mean(1)
            yield Work(node.op, index, max(node.only_if, node.out_mask), ran, macs, inputs=inputs, filters=on)
            if not node.accumulate:
                live.write(node.dst, node.out_offset, filters)
        else:
            yield Work(node.op, index, -1, all_, none + _node_macs(graph, node, live))
            if isinstance(node, Pool):
                kept = live.of(node.src) * live.chosen(node.out_mask, node.in_channels)
                live.write(node.dst, node.out_offset, kept)
            elif isinstance(node, Load):
                live.write(node.dst, 0, live.chosen(node.out_mask, node.in_channels))
            elif isinstance(node, (Stem, Transition, Subsample)):
                live.write(node.dst, 0, live.chosen(-1, node.out_channels))


def _layer_macs(block: DenseBlock, pixels: int, live: Tensor) -> Tensor:
    """Of a layer that runs, its gate not counted; ``live``: input channels that hold data, int64 [B]."""
    width = block.bottleneck
    if not width:
        return pixels * 9 * live * block.out_channels
    if block.merge == "add":
        return pixels * (2 * live * width + 9 * width * width)
    return pixels * (live * width + 9 * width * block.out_channels)


def _node_macs(graph: Graph, node: Node, live: _Live) -> int | Tensor:
    """Of a node that always runs, where ``live`` channels of the maps hold data."""
    if isinstance(node, Stem):
        return graph.maps[node.dst].pixels * 9 * node.in_channels * node.out_channels
    if isinstance(node, Transition):
        inputs = live.count(node.src) + (live.count(node.guide) if node.guide >= 0 else 0)
        return graph.maps[node.dst].pixels * inputs * node.out_channels
    if isinstance(node, PathHead):  # scaled features, then the classifier; the path's columns are sums
        return node.in_channels * (1 + node.out_channels)
    if isinstance(node, Head):
        return live.count(node.src) * node.out_channels
    if isinstance(node, Gate):  # a recurrent one embeds in 10, goes through an LSTM(10, 10) and projects
        return 10 * node.in_channels + 8 * 100 + 10 if node.recurrence else node.in_channels
    return node.in_channels * node.out_channels if isinstance(node, Linear) else 0


class _Live:
    """Which channels of each map hold data, for gates int64 [B, L]: int64 [B, C] of 0 and 1."""

    def __init__(self, gates: Tensor) -> None:
        self._gates, self._live = gates, dict[int, Tensor]()

    def of(self, map: int) -> Tensor:
        return self._live[map]

    def count(self, map: int) -> Tensor:
        return self._live[map].sum(1)

    def chosen(self, mask: int, channels: int) -> Tensor:
        """The columns of a mask that begins at gate ``mask``; all ones without one."""
        if mask < 0:
            return self._gates.new_ones(()).expand(len(self._gates), channels)
        return self._gates[:, mask : mask + channels]

    def write(self, map: int, offset: int, channels: Tensor) -> None:
        """Puts ``channels`` behind the first ``offset`` of a map."""
        self._live[map] = torch.cat([self._live[map][:, :offset], channels], 1) if offset else channels

    def append_layers(self, block: DenseBlock) -> None:
        taken = self.chosen(block.first_gate if block.gate != "none" else -1, len(block.layers))
        before = self._live[block.dst][:, : block.in_channels]
        self._live[block.dst] = torch.cat([before, taken.repeat_interleave(block.added, 1)], 1)


def last_readers(graph: Graph) -> list[list[int]]:
    """For each node, the maps that no later one touches."""

    def touched(node: Node) -> list[int]:
        return [map for map in (node.src, node.dst, getattr(node, "guide", -1)) if map >= 0]

    last = {map: i for i, node in enumerate(graph.nodes) for map in touched(node)}
    return [[map for map, i in last.items() if i == at] for at in range(len(graph.nodes))]


def pooled_maps(graph: Graph) -> set[int]:
    """Maps whose pooled vector is read: by gates, linear layers, and the gates of a dense block."""
    read = {node.src for node in graph.nodes if isinstance(node, (Gate, Linear))}
    return read | {node.dst for node in graph.nodes if isinstance(node, DenseBlock)}
