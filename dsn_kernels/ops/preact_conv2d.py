"""A transition of a dense network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .inference import refuse_gradients


def preact_conv2d(x: Tensor, weights: Tensor, out_channels: int) -> Tensor:
    """``avg_pool2d(conv2d(relu(s * x + t), w), 2)`` with a 1x1 convolution; the pool is computed first, which is exact.

    Args:
        x: float32 [B, C, H, W], H and W at least 2.
        weights: float32, packed by :class:`dsn_kernels.nn.Transition`.
        out_channels: of the convolution.

    Returns:
        float32 [B, out_channels, H // 2, W // 2].

    Raises:
        RuntimeError: an argument has the wrong device, dtype or shape; the message names it.
    """
    refuse_gradients(x, weights)
    return torch.ops.dsn.preact_conv2d(x, weights, out_channels)


@torch.library.register_fake("dsn::preact_conv2d")
def _(x, weights, out_channels):
    batch, _, height, width = x.shape
    return x.new_empty(batch, out_channels, height // 2, width // 2)


@register_flop_formula(torch.ops.dsn.preact_conv2d)
def _(x_shape, weights_shape, out_channels, *args, out_shape, **kwargs) -> int:
    batch, channels, height, width = x_shape
    return 2 * batch * preact_conv2d_macs((height // 2) * (width // 2), channels, out_channels)


def preact_conv2d_macs(out_pixels, live, out_channels):
    """MACs of a transition with ``live`` input channels that hold data (int or int64 [B])."""
    return out_pixels * live * out_channels
