"""Samples with equal gates side by side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .support import launch, register

_ROWS = 64
_COLUMNS = 32


@triton.jit
def first_kernel(masks, parts, first, batch, row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    pattern = tl.program_id(1)
    best = batch
    for start in range(0, sample.to(tl.int32) + 1, ROWS):
        i = start + tl.arange(0, ROWS)
        differ = tl.zeros([ROWS], tl.int32)
        for part in tl.static_range(2):
            begin = tl.load(parts + pattern * 4 + 2 * part)
            size = tl.load(parts + pattern * 4 + 2 * part + 1)
            for column in range(0, size, COLUMNS):
                c = column + tl.arange(0, COLUMNS)
                own = tl.load(masks + sample * row + begin + c, mask=c < size, other=0)
                at = i.to(tl.int64)[:, None] * row + begin + c[None, :]
                other = tl.load(masks + at, mask=(i <= sample)[:, None] & (c < size)[None, :], other=0)
                differ += tl.sum(((own != 0)[None, :] != (other != 0)).to(tl.int32), 1)
        best = tl.minimum(best, tl.min(tl.where((differ == 0) & (i <= sample), i, batch), 0))
    tl.store(first + pattern * batch + sample, best)


@triton.jit
def place_kernel(first, order, offsets, batch, ROWS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    pattern = tl.program_id(1).to(tl.int64)
    own = tl.load(first + pattern * batch + sample)
    before = tl.full([], 0, tl.int64)  # samples of earlier groups
    leaders = tl.full([], 0, tl.int64)  # earlier groups
    rank = tl.full([], 0, tl.int64)  # earlier samples of this group
    for start in range(0, batch, ROWS):
        i = start + tl.arange(0, ROWS)
        other = tl.load(first + pattern * batch + i, mask=i < batch, other=batch)
        before += tl.sum((other < own).to(tl.int64), 0)
        leaders += tl.sum(((other == i) & (i < own)).to(tl.int64), 0)
        rank += tl.sum(((other == own) & (i < sample)).to(tl.int64), 0)
    tl.store(order + pattern * batch + before + rank, sample)
    if own == sample:
        tl.store(offsets + pattern * (batch + 1) + leaders, before)


@register("group_by_pattern", mutates=["first", "order", "offsets"])
def _group(masks: Tensor, parts: Tensor, first: Tensor, order: Tensor, offsets: Tensor) -> None:
    (patterns, batch), row = first.shape, masks.shape[1]
    if batch and patterns:
        launch(first_kernel, (batch, patterns), masks, parts, first, batch, row, ROWS=_ROWS, COLUMNS=_COLUMNS)
        launch(place_kernel, (batch, patterns), first, order, offsets, batch, ROWS=_ROWS)


def group_by_patterns(masks: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Groups the samples whose masks are equal, by several patterns at once, without a host synchronisation.

    Groups are in the order of their first members, members in order.

    Args:
        masks: uint8 [B, E] of 0 and 1.
        parts: int32 [P, 4]: first column and number of columns, twice; a pattern is what lies in both.

    Returns:
        order int64 [P, B], the samples group after group; offsets int64 [P, B + 1], where each group begins in
        ``order``, and B beyond the last.
    """
    batch, patterns = len(masks), len(parts)
    first = masks.new_empty(patterns, batch, dtype=torch.int32)
    order = masks.new_empty(patterns, batch, dtype=torch.int64)
    offsets = masks.new_full((patterns, batch + 1), batch, dtype=torch.int64)
    _group(masks, parts, first, order, offsets)
    return order, offsets
