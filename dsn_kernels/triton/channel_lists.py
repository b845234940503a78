"""Which channels hold data and which filters are chosen, as masks and lists that the kernels read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _C
from ..ops.network import Instruction, Plan
from .group_by_pattern import group_by_patterns
from .routing import partition
from .tiles import units_of

# The gates that must all be on for a channel to hold data; none: it always does.
Gates = tuple[int, ...]

# Units of a tile of 128 rows: a map of as many leaves no room in it for another sample's.
_TILE_UNITS = 8
_POOLS = (_C.OPS["max_pool"], _C.OPS["avg_pool"])


class Listed(NamedTuple):
    """For all lists side by side, masks uint8 [B, E], entries int32 [B, E], chosen ones first, and how many of each are
    chosen, int32 [B, lists]; for each pattern order int64 [P, B] and offsets int64 [P, B + 1] of its groups."""

    masks: Tensor
    entries: Tensor
    counts: Tensor
    order: Tensor
    offsets: Tensor


class ChannelLists(nn.Module):
    """The lists of a plan, each once, and which instruction reads which.

    ``inputs[i]``: the list of the channels that instruction i reads, -1 where all of them always hold data;
    ``filters[i]``: that of the filters it computes, -1 for all. ``patterns[i]``: of a convolution the pattern of both,
    by which samples that choose alike share tiles; -1 where a sample's own map fills them. A dense block's slices are
    not among them: it lists its own.
    """

    parts: Tensor
    columns: Tensor
    segments: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._found: dict[tuple[Gates, ...], int] = {}
        self._live: dict[int, list[Gates]] = {}
        self.inputs, self.filters = [-1] * len(plan.code), [-1] * len(plan.code)
        for i, step in enumerate(plan.code):
            self._visit(i, step)
        pairs: dict[tuple[int, int], int] = {}
        self.patterns = [-1] * len(plan.code)
        for i, step in enumerate(plan.code):
            pair = (self.inputs[i], self.filters[i])
            if step.op == _C.OPS["conv2d"] and max(pair) >= 0 and _is_small(plan.buffers[step.dst]):
                self.patterns[i] = pairs.setdefault(pair, len(pairs))
        always = plan.gates  # a column of ones behind the gates
        depth = max([1, *(len(gates) for channels in self._found for gates in channels)])
        entries = [[*gates, *[always] * (depth - len(gates))] for channels in self._found for gates in channels]
        ends = torch.tensor([len(channels) for channels in self._found], dtype=torch.int32).cumsum(0)
        sizes = ends.diff(prepend=ends.new_zeros(1))
        self.register_buffer("columns", torch.tensor(entries).long().view(-1, depth), persistent=False)
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

    def _visit(self, i: int, step: Instruction) -> None:
        if step.src >= 0:
            self.inputs[i] = self._list(self._read(step))
        if step.op == _C.OPS["conv2d"]:
            chosen = _chosen(step.out_mask, step.out_channels)
            self.filters[i] = self._list(chosen)
            if not step.flags & _C.FLAGS["accumulate"]:
                self._write(step, chosen)
        elif step.op in _POOLS:
            own = _chosen(step.out_mask, step.in_channels)
            self._write(step, [a + b for a, b in zip(self._read(step), own, strict=True)])
        elif step.op == _C.OPS["load"]:
            self._write(step, _chosen(step.out_mask, step.in_channels))
        elif step.dst >= 0 and step.op != _C.OPS["add"]:
            self._live[step.dst] = []

    def _read(self, step: Instruction) -> list[Gates]:
        known = self._live.get(step.src, [])[step.src_offset : step.src_offset + step.in_channels]
        return known + [()] * (step.in_channels - len(known))

    def _write(self, step: Instruction, channels: list[Gates]) -> None:
        before = self._live.get(step.dst, [])[: step.out_offset]
        self._live[step.dst] = before + [()] * (step.out_offset - len(before)) + channels

    def _list(self, channels: list[Gates]) -> int:
        return self._found.setdefault(tuple(channels), len(self._found)) if any(channels) else -1


def _chosen(mask: int, channels: int) -> list[Gates]:
    return [(mask + c,) if mask >= 0 else () for c in range(channels)]


def _is_small(buffer: tuple[int, int, int]) -> bool:
    _, height, width = buffer
    return units_of(height * width) < _TILE_UNITS
