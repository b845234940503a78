"""A plan on a GPU: launches with static grids that find their samples by gate words."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _C
from .inference import refuse_gradients
from .network import Plan


class Outputs(NamedTuple):
    """What a plan leaves: logits float32 [B, logits], the stored map or [B, 0, 1, 1], gates uint8 [B, L], scores
    float32 [B, L] and MACs int64 [B]."""

    logits: Tensor
    map: Tensor
    gates: Tensor
    scores: Tensor
    macs: Tensor


def stored_map(plan: Plan) -> list[int]:
    """[channels, height, width] of what ``plan`` stores; [0, 1, 1] if nothing."""
    for step in plan.code:
        if step.op == _C.OPS["store"]:
            return [step.in_channels, *plan.buffers[step.src][1:]]
    return [0, 1, 1]


def run_plan(
    image: Tensor,
    weights: Tensor,
    thresholds: Tensor,
    forced_gates: Tensor | None,
    count: Tensor | None,
    plan: Plan,
    words: Tensor,
    element: int,
) -> Outputs:
    """Runs ``plan`` for every sample on the GPU, without a host synchronisation.

    Args:
        image: [B, C, H, W] on the GPU, float32 or the element.
        weights: uint8, packed by :func:`dsn_kernels.nn.cuda_packing.pack_for_cuda`.
        thresholds: float32 [L] in [0, 1], not checked: that would need a synchronisation.
        forced_gates: uint8 [B, L], 0 skips and anything else runs, or None.
        count: int32 [1], how many samples of the batch are real, or None for all; the outputs of the others, but for
            their MACs, which are 0, are undefined.
        plan, words: the plan with offsets in bytes, and its ``words()``, on the CPU.
        element: of ``_C.cuda.ELEMENTS``.

    Returns:
        what the plan leaves; the stored map is of the image's dtype.

    Raises:
        RuntimeError: an argument has the wrong device, dtype or shape, the device lacks the architecture or the memory,
            or the plan does not fit; the message names it.
    """
    refuse_gradients(image, weights, thresholds)
    sizes = (plan.gates, plan.logits, stored_map(plan), element)
    return Outputs(*torch.ops.dsn.run_plan(image, weights, thresholds, forced_gates, count, words, *sizes))


@torch.library.register_fake("dsn::run_plan")
def _(image, weights, thresholds, forced_gates, count, plan, gates, logits, map, element):
    batch = image.shape[0]
    return (
        image.new_empty(batch, logits, dtype=torch.float32),
        image.new_empty(batch, *map),
        image.new_empty(batch, gates, dtype=torch.uint8),
        image.new_empty(batch, gates, dtype=torch.float32),
        image.new_empty(batch, dtype=torch.int64),
    )


@register_flop_formula(torch.ops.dsn.run_plan, get_raw=True)
def _(*args, out_val, **kwargs) -> int:
    return 2 * int(out_val[4].sum())
