"""The classifier of a dense network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .inference import refuse_gradients


def head(x: Tensor, weights: Tensor, classes: int) -> Tensor:
    """``linear(relu(s * x + t).mean((2, 3)))``.

    Args:
        x: float32 [B, C, H, W].
        weights: float32, packed by :class:`dsn_kernels.nn.Head`.
        classes: outputs of the linear layer.

    Returns:
        logits float32 [B, classes].

    Raises:
        RuntimeError: an argument has the wrong device, dtype or shape; the message names it.
    """
    refuse_gradients(x, weights)
    return torch.ops.dsn.head(x, weights, classes)


@torch.library.register_fake("dsn::head")
def _(x, weights, classes):
    return x.new_empty(x.shape[0], classes)


@register_flop_formula(torch.ops.dsn.head)
def _(x_shape, weights_shape, classes, *args, out_shape, **kwargs) -> int:
    return 2 * x_shape[0] * head_macs(x_shape[1], classes)


def head_macs(live, classes):
    """MACs of a head with ``live`` input channels that hold data (int or int64 [B])."""
    return live * classes
