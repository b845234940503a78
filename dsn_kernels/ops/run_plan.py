"""The one operator: a plan, of a network or of a part of one, run for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _C
from .inference import refuse_gradients

_FLOAT = _C.cuda.ELEMENTS["float32"]
_NO_MAP = (0, 1, 1)


class Outputs(NamedTuple):
    """What a plan leaves: logits float32 [B, logits], the stored map or [B, 0, 1, 1], gates uint8 [B, L], scores
    float32 [B, L] and MACs int64 [B]."""

    logits: Tensor
    map: Tensor
    gates: Tensor
    scores: Tensor
    macs: Tensor


def run_plan(
    image: Tensor,
    weights: Tensor,
    thresholds: Tensor,
    forced_gates: Tensor | None,
    plan: Tensor,
    gates: int,
    logits: int,
    map: Sequence[int] = _NO_MAP,
    *,
    count: Tensor | None = None,
    element: int = _FLOAT,
    timed: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Runs ``plan`` for each sample; what a gate shuts is not computed.

    On the CPU what stands between two instructions never leaves a worker's memory, which is one copy of the plan's
    buffers per thread, whatever the batch. On a GPU the launches have static grids and find their samples by gate
    words, without a host synchronisation.

    Args:
        image: [B, C, H, W]; float32, on a GPU also the element's type.
        weights: float32 [W], packed by :mod:`dsn_kernels.lower.cpu`; on a GPU uint8, packed by
            :mod:`dsn_kernels.lower.cuda`.
        thresholds: float32 [L] in [0, 1], L the gates of the plan. Not checked on a GPU, which would need a
            synchronisation.
        forced_gates: uint8 [B, L] of 0 (skip) and 1 (run), in place of the decisions, or None; on the CPU also 2: as
            decided. Gates that no instruction decides are always given.
        plan: int64, ``dsn_kernels.lower.Plan.words()``, on the CPU; offsets in floats, on a GPU in bytes.
        gates, logits, map: of the plan's graph: its gates, its logits and [channels, height, width] of what it stores.
        count: on a GPU, int32 [1], how many samples of the batch are real, or None for all; the outputs of the others,
            but for their MACs, which are 0, are undefined.
        element: of ``_C.cuda.ELEMENTS``; float32 on the CPU.
        timed: on the CPU, note when each step ran; the steps are those of :func:`dsn_kernels.lower.steps`.

    Returns:
        logits float32 [B, logits]; the stored map [B, *map], of the image's type; gates taken uint8 [B, L]; scores
        float32 [B, L]; MACs executed int64 [B]; spans int64 [B, threads, steps, 3] if timed, else empty: nanoseconds of
        the system's steady clock (``time.monotonic_ns``) at which a thread began and ended a step of a sample, and the
        MACs it did in between; zeros where it had no part in it. A dense block's layers lie within its own span.

    Raises:
        UserError: an input requires gradients.
        RuntimeError: an argument has the wrong device, dtype, shape or values, the device lacks the architecture or the
            memory, or the plan does not fit; the message names it.
    """
    refuse_gradients(image, weights, thresholds)
    # The overload itself: to find it among the operator's takes a microsecond.
    return torch.ops.dsn.run_plan.default(
        image, weights, thresholds, forced_gates, count, plan, gates, logits, map, element, timed
    )


@torch.library.register_fake("dsn::run_plan")
def _(image, weights, thresholds, forced_gates, count, plan, gates, logits, map, element, timed):
    batch, spans = image.shape[0], (0,)
    if timed:
        spans = (batch, *(torch.library.get_ctx().new_dynamic_size() for _ in range(2)), 3)
    return (
        image.new_empty(batch, logits, dtype=torch.float32),
        image.new_empty(batch, *map),
        image.new_empty(batch, gates, dtype=torch.uint8),
        image.new_empty(batch, gates, dtype=torch.float32),
        image.new_empty(batch, dtype=torch.int64),
        image.new_empty(spans, dtype=torch.int64),
    )


@register_flop_formula(torch.ops.dsn.run_plan, get_raw=True)
def _(*args, out_val, **kwargs) -> int:
    return 2 * int(out_val[4].sum())
