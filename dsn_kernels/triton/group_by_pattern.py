"""Samples with equal gates side by side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .support import launch, register

_ROWS = 64
_COLUMNS = 64


@triton.jit
def first_kernel(patterns, first, batch, layers, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    best = batch
    for start in range(0, sample.to(tl.int32) + 1, ROWS):
        i = start + tl.arange(0, ROWS)
        differ = tl.zeros([ROWS], tl.int32)
        for column in range(0, layers, COLUMNS):
            c = column + tl.arange(0, COLUMNS)
            own = tl.load(patterns + sample * layers + c, mask=c < layers, other=0)
            at = i.to(tl.int64)[:, None] * layers + c[None, :]
            other = tl.load(patterns + at, mask=(i <= sample)[:, None] & (c < layers)[None, :], other=0)
            differ += tl.sum(((own != 0)[None, :] != (other != 0)).to(tl.int32), 1)
        best = tl.minimum(best, tl.min(tl.where((differ == 0) & (i <= sample), i, batch), 0))
    tl.store(first + sample, best)


@triton.jit
def place_kernel(first, order, group, offsets, batch, ROWS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    own = tl.load(first + sample)
    before = tl.full([], 0, tl.int64)  # samples of earlier groups
    leaders = tl.full([], 0, tl.int64)  # earlier groups
    rank = tl.full([], 0, tl.int64)  # earlier samples of this group
    for start in range(0, batch, ROWS):
        i = start + tl.arange(0, ROWS)
        other = tl.load(first + i, mask=i < batch, other=batch)
        before += tl.sum((other < own).to(tl.int64), 0)
        leaders += tl.sum(((other == i) & (i < own)).to(tl.int64), 0)
        rank += tl.sum(((other == own) & (i < sample)).to(tl.int64), 0)
    tl.store(group + sample, leaders)
    tl.store(order + before + rank, sample)
    if own == sample:
        tl.store(offsets + leaders, before)


@register("group_by_pattern", mutates=["first", "order", "group", "offsets"])
def _group(gates: Tensor, first: Tensor, order: Tensor, group: Tensor, offsets: Tensor) -> None:
    batch, layers = gates.shape
    if batch:
        launch(first_kernel, (batch,), gates, first, batch, layers, ROWS=_ROWS, COLUMNS=_COLUMNS)
        launch(place_kernel, (batch,), first, order, group, offsets, batch, ROWS=_ROWS)


def group_by_pattern(gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`dsn_kernels.ops.group_by_pattern`, without a host synchronisation.

    Args:
        gates: uint8 [B, L] of 0 and 1.

    Returns:
        order int64 [B], group int64 [B], offsets int64 [B + 1].

    Raises:
        RuntimeError: gates have the wrong dtype or shape.
    """
    if gates.dtype != torch.uint8 or gates.dim() != 2:
        given = f"{gates.dtype} {list(gates.shape)}"
        raise RuntimeError(f"group_by_pattern: gates must be uint8 [any, any], got {given}")
    batch = gates.shape[0]
    first = gates.new_empty(batch, dtype=torch.int32)
    order, group = (gates.new_empty(batch, dtype=torch.int64) for _ in range(2))
    offsets = gates.new_full((batch + 1,), batch, dtype=torch.int64)
    _group(gates.contiguous(), first, order, group, offsets)
    return order, group, offsets
