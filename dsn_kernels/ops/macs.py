"""Multiply-accumulates (MACs) of the steps of a plan that need more than a product."""

from __future__ import annotations

from torch import Tensor

from .. import _C


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


def gate_macs(in_channels: int, recurrent: bool) -> int:
    """A linear map of the pooled input; a recurrent gate embeds in 10, goes through an LSTM(10, 10) and projects."""
    return 10 * in_channels + 8 * 100 + 10 if recurrent else in_channels
