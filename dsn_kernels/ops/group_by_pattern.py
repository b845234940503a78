"""Samples with equal gates side by side."""

from __future__ import annotations

import torch
from torch import Tensor


def group_by_pattern(gates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups the samples whose gates are equal, in the order of each group's first member, members in order.

    Args:
        gates: uint8 [B, L] of 0 and 1, for any L.

    Returns:
        order int64 [B], the samples group after group; group int64 [B], the group of each sample; offsets int64
        [B + 1], where each group begins in ``order``, and B beyond the last. On a GPU without a host synchronisation.

    Raises:
        RuntimeError: gates have the wrong dtype or shape.
    """
    return torch.ops.dsn.group_by_pattern(gates)


@torch.library.register_fake("dsn::group_by_pattern")
def _(gates):
    batch = gates.shape[0]
    return tuple(gates.new_empty(n, dtype=torch.int64) for n in (batch, batch, batch + 1))


@torch.library.impl("dsn::group_by_pattern", "CPU")
def _(gates):
    if gates.dtype != torch.uint8:
        raise RuntimeError(f"group_by_pattern: gates must be uint8 [any, any], got {gates.dtype}")
    if gates.dim() != 2:
        raise RuntimeError(f"group_by_pattern: gates must have shape [any, any], got {list(gates.shape)}")
    batch = gates.shape[0]
    offsets = torch.full((batch + 1,), batch)
    if batch == 0:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), offsets
    columns = torch.cat([gates != 0, gates.new_zeros(batch, 1, dtype=torch.bool)], 1)  # unique needs a column
    _, ids = torch.unique(columns, dim=0, return_inverse=True)
    first = torch.full((int(ids.max()) + 1,), batch).scatter_reduce_(0, ids, torch.arange(batch), "amin")
    group = first.argsort().argsort()[ids]
    order = group.argsort(stable=True)
    sizes = group.bincount()
    offsets[: len(sizes)] = sizes.cumsum(0) - sizes
    return order, group, offsets
