"""Parts of a network from one map to another: plans that load a map and store one."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .network import Plan
from .run_plan import run_plan

_FLOAT = 0  # of _C.cuda.ELEMENTS


class StageOutput(NamedTuple):
    """y float32 [B, O, H', W']; gates taken uint8 [B, L]; scores float32 [B, L]; MACs executed int64 [B]."""

    y: Tensor
    gates: Tensor
    scores: Tensor
    macs: Tensor


def stage(
    x: Tensor, weights: Tensor, plan: Plan, thresholds: Tensor | None = None, forced_gates: Tensor | None = None
) -> StageOutput:
    """Runs a plan that loads x and stores a map, of any size; what lies between never leaves a worker's memory.

    Args:
        x: float32 [B, C, H, W].
        weights: float32, packed by the twin that made the plan.
        plan: of a twin in :mod:`dsn_kernels.nn`.
        thresholds: float32 [L] in [0, 1]; 0.5 if not given.
        forced_gates: uint8 [B, L] of 0 and 1, or None.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape or values; the message names it.
    """
    if x.dim() != 4:
        raise RuntimeError(f"run_plan: image must have shape [any, any, any, any], got {list(x.shape)}")
    height, width = x.shape[2:]
    fitted, words = _compile(plan, height, width) if torch.compiler.is_compiling() else _kept(plan, height, width)
    limits = torch.full((plan.gates,), 0.5, dtype=torch.float32) if thresholds is None else thresholds
    _, y, gates, scores, macs = run_plan(x, weights, limits, forced_gates, None, fitted, words, _FLOAT)
    return StageOutput(y, gates, scores, macs)


def _compile(plan: Plan, height: int, width: int) -> tuple[Plan, Tensor]:
    fitted = plan.resized(height, width)
    return fitted, fitted.words()


_kept = lru_cache(maxsize=256)(_compile)


def residual_stage(
    x: Tensor, weights: Tensor, plan: Plan, thresholds: Tensor | None = None, forced_gates: Tensor | None = None
) -> StageOutput:
    """Runs, for each sample, the residual units of a stage whose gate opens. SkipNet, equation 1 and section 2.

    With F a unit's residual, S its shortcut, ReLU absent behind pre-activation units, and g = 1(score > threshold):
    ``y = g ReLU(S(x) + F(x)) + (1 - g) S(x)``. The gates are linear maps of the pooled input through an LSTM that they
    share, or convolutions of their own. A bypassed unit costs its gate and nothing else.

    Args:
        x: float32 [B, C, H, W].
        weights, plan: of :class:`dsn_kernels.nn.ResidualStage`.
        thresholds: float32 [L] in [0, 1]; 0.5 if not given.
        forced_gates: uint8 [B, L] of 0 and 1, in place of the decisions, or None.

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape or values; the message names it.
    """
    return stage(x, weights, plan, thresholds, forced_gates)


def select_conv2d(x: Tensor, weights: Tensor, plan: Plan, filters: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """``filters * conv2d(channels * x)`` for masks of each sample, in their own cost. GaterNet, equation 4.

    A filter that is off costs no MACs, nor does a channel that is off; with a BN-ReLU in front of the convolution such
    a channel is the constant relu(shift), which is added for what it is.

    Args:
        x: float32 [B, C, H, W].
        weights, plan: of :class:`dsn_kernels.nn.SelectConv2d`, which says what stands around the convolution.
        filters: uint8 [B, O] of 0 and 1.
        channels: uint8 [B, C] of 0 and 1.

    Returns:
        y float32 [B, O, H', W']; MACs executed int64 [B].

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape or values; the message names it.
    """
    out = stage(x, weights, plan, forced_gates=torch.cat([filters, channels], 1))
    return out.y, out.macs


def gradual_layer(x: Tensor, weights: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Updates the channels of x segment by segment, in place on one buffer. GUNN, equation 4.

    For each segment c_i in order: ``x[c_i] = G_i(x) + x[c_i]``, where G_i reads all channels as they are then, or, for
    a simultaneous layer, as they came.

    Args:
        x: float32 [B, C, H, W].
        weights, plan: of a :class:`dsn_kernels.nn.Stage` of a `dsn_models.gradually_updated.GradualLayer`.

    Returns:
        y float32 [B, C, H, W]; MACs executed int64 [B].

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape or values; the message names it.
    """
    out = stage(x, weights, plan)
    return out.y, out.macs
