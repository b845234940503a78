"""Which channels hold data and which filters are chosen, as masks and lists that the kernels read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..graph import Conv2d, DenseBlock, Gates, Graph, Reads, chosen_channels, decided_gates, gate_columns
from .group_by_pattern import group_by_patterns
from .routing import partition
from .tiles import units_of

# Units of a tile of 128 rows: a map of as many leaves no room in it for another sample's.
_TILE_UNITS = 8


class Listed(NamedTuple):
    """For all lists side by side, masks uint8 [B, E], entries int32 [B, E], chosen ones first, and how many of each are
    chosen, int32 [B, lists]; for each pattern order int64 [P, B] and offsets int64 [P, B + 1] of its groups."""

    masks: Tensor
    entries: Tensor
    counts: Tensor
    order: Tensor
    offsets: Tensor


class ChannelLists(nn.Module):
    """The lists of a graph, each once, and which node reads which.

    ``inputs[i]``: the list of the channels that node i reads, -1 where all of them always hold data;
    ``filters[i]``: that of the filters it computes, -1 for all. ``patterns[i]``: of a convolution the pattern of both,
    by which samples that choose alike share tiles; -1 where a sample's own map fills them. A dense block's slices are
    not among them: it lists its own. ``gates``: all that choose; ``forced``: whether no node decides some of them.

    Args:
        graph: the network.
        reads: of its nodes.
    """

    parts: Tensor
    columns: Tensor
    segments: Tensor

    def __init__(self, graph: Graph, reads: list[Reads]) -> None:
        super().__init__()
        found: dict[tuple[Gates, ...], int] = {}
        pairs: dict[tuple[int, int], int] = {}
        self.inputs, self.filters, self.patterns = ([-1] * len(graph.nodes) for _ in range(3))
        states = {node.dst for node in graph.nodes if isinstance(node, DenseBlock)}
        for i, node in enumerate(graph.nodes):
            channels = reads[i].channels[: node.in_channels]  # a guide is a dense block's state
            if any(channels) and node.src not in states:
                self.inputs[i] = found.setdefault(channels, len(found))
            if not isinstance(node, Conv2d):
                continue
            if node.out_mask >= 0:
                filters = tuple(chosen_channels(node.out_mask, node.out_channels))
                self.filters[i] = found.setdefault(filters, len(found))
            pair = (self.inputs[i], self.filters[i])
            if max(pair) >= 0 and units_of(graph.maps[node.dst].pixels) < _TILE_UNITS:
                self.patterns[i] = pairs.setdefault(pair, len(pairs))
        ends = torch.tensor([len(channels) for channels in found], dtype=torch.int32).cumsum(0)
        sizes = ends.diff(prepend=ends.new_zeros(1))
        entries = [gates for channels in found for gates in channels]
        self.gates = {gate for gates in entries for gate in gates}
        self.forced = bool(self.gates - {gate for node in graph.nodes for gate in decided_gates(node)})
        # A column of ones follows the gates.
        self.register_buffer("columns", gate_columns(entries, graph.gates), persistent=False)
        self.register_buffer("segments", torch.stack([ends - sizes, sizes], 1).int(), persistent=False)
        none = torch.zeros(1, 2, dtype=torch.int32)  # of -1
        parts = torch.cat([self.segments, none])[torch.tensor(list(pairs)).long().view(-1, 2)].flatten(1)
        self.register_buffer("parts", parts, persistent=False)
        self.slices = [slice(first, first + size) for first, size in self.segments.tolist()]

    def __len__(self) -> int:
        return len(self.slices)

    def make(self, gates: Tensor) -> Listed:
        """What gates uint8 [B, L] of 0 and 1 choose."""
        known = torch.cat([gates, gates.new_ones(len(gates), 1)], 1)
        masks = known[:, self.columns].amin(2)
        lists = torch.empty_like(masks, dtype=torch.int32)
        counts = lists.new_empty(len(gates), len(self))
        partition(masks, self.segments, lists, counts)
        order, offsets = group_by_patterns(masks, self.parts)
        return Listed(masks, lists, counts, order, offsets)
