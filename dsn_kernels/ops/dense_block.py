"""A block of gated pre-activation dense layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _C
from .inference import refuse_gradients


def dense_block(
    x: Tensor,
    weights: Tensor,
    thresholds: Tensor,
    forced_gates: Tensor | None = None,
    *,
    growth: int,
    layers: int,
    bottleneck: int = 0,
    gate: str = "hard",
    merge: str = "concat",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs, for each sample, the layers of a dense block whose gate opens. Dual Skipping Networks, section 3.1.

    For layer l with input x (concat: all before it; add: the running sum) and p the global average of x:

    ``score = clamp(w . p + b + 1/2, 0, 1)`` (hard) or ``sigmoid(w . p + b)`` (soft); the layer runs iff
    ``score > thresholds[l]``, or iff ``forced_gates[:, l]``. Its output is BN-ReLU-3x3(x), or
    BN-ReLU-1x1-BN-ReLU-3x3(x) with a bottleneck, or BN-ReLU-1x1-BN-ReLU-3x3-BN-ReLU-1x1(x) added to x. A layer that
    does not run yields zeros.

    Args:
        x: float32 [B, C, H, W].
        weights: float32, packed by :class:`dsn_kernels.nn.DenseBlock`.
        thresholds: float32 [layers] in [0, 1].
        forced_gates: uint8 [B, layers] of 0 and 1, or None.
        growth: channels that a layer adds (concat).
        bottleneck: channels between 1x1 and 3x3; 0 for plain layers.
        gate: "hard", "soft" or "none" (every layer runs).
        merge: "concat" or "add".

    Returns:
        y float32 [B, C + layers * growth, H, W] (concat) or [B, C, H, W] (add); gates taken uint8 [B, layers]; scores
        float32 [B, layers]; MACs executed int64 [B].

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape or values; the message names it.
    """
    refuse_gradients(x, weights, thresholds)
    return torch.ops.dsn.dense_block(
        x, weights, thresholds, forced_gates, growth, layers, bottleneck, _C.GATES[gate], _C.MERGES[merge]
    )


@torch.library.register_fake("dsn::dense_block")
def _(x, weights, thresholds, forced_gates, growth, layers, bottleneck, gate, merge):
    batch, channels, height, width = x.shape
    if merge == _C.MERGES["concat"]:
        channels = channels + layers * growth
    return (
        x.new_empty(batch, channels, height, width),
        x.new_empty(batch, layers, dtype=torch.uint8),
        x.new_empty(batch, layers),
        x.new_empty(batch, dtype=torch.int64),
    )


@register_flop_formula(torch.ops.dsn.dense_block, get_raw=True)
def _(*args, out_val, **kwargs) -> int:
    return 2 * int(out_val[3].sum())


def dense_layer_macs(pixels: int, live: Tensor, growth: int, bottleneck: int, merge: int) -> Tensor:
    """MACs of one layer that runs, its gate not counted.

    Args:
        pixels: H * W.
        live: int64 [B], input channels that hold data: the block input's and those of earlier layers that ran.
        growth: channels that the layer adds (concat).
        bottleneck: channels between 1x1 and 3x3; 0 for plain layers.
        merge: of ``_C.MERGES``.
    """
    if not bottleneck:
        return pixels * 9 * live * growth
    if merge == _C.MERGES["add"]:
        return pixels * (2 * live * bottleneck + 9 * bottleneck * bottleneck)
    return pixels * (live * bottleneck + 9 * bottleneck * growth)
