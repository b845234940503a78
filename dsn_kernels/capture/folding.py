"""Batch norms folded into what stands beside them, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsn_models.errors import UserError

from ..graph import Affine, Window


def fold(norm: nn.Module) -> Affine:
    """(s, t) with ``norm(x) = s x + t`` in ``eval()``, float64 [C].

    Raises:
        ValueError: a batch norm without running statistics, which depends on the batch.
    """
    of: Any = norm
    if of.running_mean is None or of.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded: train it with track_running_stats")
    scale = (of.running_var.double() + of.eps).rsqrt()
    if of.weight is not None:
        scale = scale * of.weight.detach().double()
    shift = -of.running_mean.double() * scale
    if of.bias is not None:
        shift = shift + of.bias.detach().double()
    return Affine(scale, shift)


def relu_alone(channels: int) -> Affine:
    """The identity, for a convolution behind a ReLU that has no batch norm before it."""
    return Affine(torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))


def folded_conv(conv: Any, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of a convolution with the batch norm behind it, if there is one."""
    weight = conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if isinstance(norm, nn.BatchNorm2d):
        scale, shift = fold(norm)
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    return weight, bias


def window_of(conv: Any) -> Window:
    """The window of a convolution or pool.

    Raises:
        UserError: the convolution is grouped or dilated, or its strides or padding are of a kind that is not served.
    """
    (rows, columns), (stride, across), padding = (_pair(n) for n in (conv.kernel_size, conv.stride, conv.padding))
    plain = (getattr(conv, "groups", 1), _pair(getattr(conv, "dilation", 1))) == (1, (1, 1)) and stride == across
    if not plain or getattr(conv, "padding_mode", "zeros") != "zeros" or isinstance(padding, str):
        raise UserError(
            f"{conv} is not served; expected one group, no dilation, equal strides, padding in numbers and of zeros"
        )
    return Window(rows, columns, stride, *padding)


def _pair(size: Any) -> Any:
    return (size, size) if isinstance(size, int) else size
