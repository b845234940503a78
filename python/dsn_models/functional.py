"""The two words in which a network says what its gates decide, as operators that training, export and compile all see.

Both are plain PyTorch with a formula for the gradient. They compute everything and then choose. ``torch.export`` and
``torch.compile(fullgraph=True)`` keep each as one node, ``torch.ops.dsn.where_open`` and
``torch.ops.dsn.choose_filters``, from which whoever runs the graph can tell what need not be computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .tensors import dtype_name


def where_open(open: Tensor, computed: Tensor, otherwise: Tensor) -> Tensor:
    """``otherwise + open (computed - otherwise)`` for each image: ``computed`` where its gate is open, else the other.

    It is exact at both ends. An image whose ``open`` is 1 gets ``computed`` bit for bit, one whose ``open`` is 0 gets
    ``otherwise``, and NaN or infinity in the side that was not chosen do not reach the result.

    The gradients, g that of the result: ``open g`` for ``computed``, ``(1 - open) g`` for ``otherwise``, exactly 0 in
    the side that was not chosen; ``sum g (computed - otherwise)`` over an image for ``open``, which reads both sides.

    Args:
        open: [B]. Floating point: 0 and 1, or between; bool or uint8: open iff not 0, without a gradient.
        computed: [B, ...], floating point.
        otherwise: of the same shape. Where the dtypes differ, as they may under autocast, both are promoted to one by
            ``torch.promote_types``; the dtype of ``open`` plays no part.

    Returns:
        [B, ...], of the promoted dtype.

    Raises:
        UserError: ``open`` has another dtype or shape, ``computed`` or ``otherwise`` is not floating point, or their
            shapes or devices differ.

    Equivalent to, but for the exactness::

        torch.lerp(otherwise, computed, open.to(computed.dtype).view(-1, 1, 1, 1))

    >>> where_open(torch.tensor([1, 0]).byte(), torch.ones(2, 1), torch.zeros(2, 1)).tolist()
    [[1.0], [0.0]]
    """
    if computed.dtype != otherwise.dtype:
        dtype = torch.promote_types(computed.dtype, otherwise.dtype)
        computed, otherwise = computed.to(dtype), otherwise.to(dtype)
    return _where_open(open, computed, otherwise)


def choose_filters(x: Tensor, mask: Tensor) -> Tensor:
    """``x * mask``, a factor for each image and channel: the filters whose factor is 0 were not chosen.

    It is exact at both ends. Where ``mask`` is 1 the result is ``x`` bit for bit, where it is 0 the result is 0, and
    NaN or infinity in a channel that was not chosen do not reach it.

    The gradients, g that of the result: ``mask g`` for ``x``, exactly 0 in channels that were not chosen;
    ``sum g x`` over a channel for ``mask``.

    Args:
        x: [B, C, ...], floating point, as a convolution or its batch norm leaves it.
        mask: [B, C]. Floating point: 0 and 1, or between; bool or uint8: chosen iff not 0, without a gradient.

    Returns:
        [B, C, ...], of the dtype of ``x``; the dtype of ``mask`` plays no part, under autocast too.

    Raises:
        UserError: ``mask`` has another dtype, shape or device, or ``x`` is not floating point.

    Equivalent to, but for the exactness::

        x * mask.to(x.dtype)[:, :, None, None]

    >>> choose_filters(torch.ones(1, 3), torch.tensor([[1.0, 0.0, 1.0]])).tolist()
    [[1.0, 0.0, 1.0]]
    """
    return _choose_filters(x, mask)


def _mixed(open: Tensor, computed: Tensor, otherwise: Tensor) -> Tensor:
    _check_where_open(open, computed, otherwise)
    weight = _spread(open, computed)
    if not open.is_floating_point():
        return torch.where(weight != 0, computed, otherwise)
    between = torch.lerp(otherwise, computed, weight.to(computed.dtype))
    return torch.where(weight == 1, computed, torch.where(weight == 0, otherwise, between))


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    _check_choose_filters(x, mask)
    weight = _spread(mask, x)
    kept = x * weight.to(x.dtype) if mask.is_floating_point() else x
    return torch.where(weight == 0, 0.0, kept)


def _spread(weight: Tensor, over: Tensor) -> Tensor:
    """``weight`` [B] or [B, C] with dimensions of size 1 after it, as many as ``over`` has more."""
    return weight[(..., *(None,) * (over.dim() - weight.dim()))]


def _summed(product: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a weight [B] or [B, C]: the sum over the dimensions that it lacks, in the wider of both types."""
    wide = torch.promote_types(product.dtype, weight.dtype)
    return product.unsqueeze(-1).flatten(weight.dim()).sum(-1, dtype=wide).to(weight.dtype)


_where_open = torch.library.custom_op("dsn::where_open", _mixed, mutates_args=())
_choose_filters = torch.library.custom_op("dsn::choose_filters", _masked, mutates_args=())
# A fake tensor takes the same road as a real one, so that strides and memory formats are the same.
_where_open.register_fake(_mixed)
_choose_filters.register_fake(_masked)


def _keep_where_open(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    open, computed, otherwise = inputs
    # Both sides are kept for the gradient of a gate that learns, and for no other.
    ctx.save_for_backward(open, *((computed, otherwise) if ctx.needs_input_grad[0] else ()))


def _where_open_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    open, *sides = ctx.saved_tensors
    zero = grad.new_zeros(()).expand_as(grad)
    # In the operator's own words, so that these gradients have gradients too.
    return (
        _summed(grad * (sides[0] - sides[1]), open) if ctx.needs_input_grad[0] else None,
        _where_open(open, grad, zero) if ctx.needs_input_grad[1] else None,
        _where_open(open, zero, grad) if ctx.needs_input_grad[2] else None,
    )


def _keep_choose_filters(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, mask = inputs
    ctx.save_for_backward(mask, *((x,) if ctx.needs_input_grad[1] else ()))


def _choose_filters_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    mask, *kept = ctx.saved_tensors
    return (
        _choose_filters(grad, mask) if ctx.needs_input_grad[0] else None,
        _summed(grad * kept[0], mask) if ctx.needs_input_grad[1] else None,
    )


_where_open.register_autograd(_where_open_backward, setup_context=_keep_where_open)
_choose_filters.register_autograd(_choose_filters_backward, setup_context=_keep_choose_filters)


def _check_where_open(open: Tensor, computed: Tensor, otherwise: Tensor) -> None:
    for name, tensor in (("open", open), ("otherwise", otherwise)):
        _check_device("where_open", name, tensor, "computed", computed)
    _check_weight_dtype("where_open", "open", open)
    for name, tensor in (("computed", computed), ("otherwise", otherwise)):
        _check_floating("where_open", name, tensor)
    if computed.dtype != otherwise.dtype:
        raise UserError(
            f"where_open: otherwise is {dtype_name(otherwise.dtype)}; expected {dtype_name(computed.dtype)}, "
            "as computed is"
        )
    if computed.dim() == 0:
        raise UserError("where_open: computed has no dimension; expected [B, ...]")
    if computed.shape != otherwise.shape:
        raise UserError(
            f"where_open: otherwise is {[*otherwise.shape]}; expected {[*computed.shape]}, the shape of computed"
        )
    if open.dim() != 1 or open.shape[0] != computed.shape[0]:
        raise UserError(f"where_open: open is {[*open.shape]}; expected [{computed.shape[0]}], a value for each image")


def _check_choose_filters(x: Tensor, mask: Tensor) -> None:
    _check_device("choose_filters", "mask", mask, "x", x)
    _check_weight_dtype("choose_filters", "mask", mask)
    _check_floating("choose_filters", "x", x)
    if x.dim() < 2:
        raise UserError(f"choose_filters: x is {[*x.shape]}; expected [B, C, ...]")
    if mask.dim() != 2 or mask.shape != x.shape[:2]:
        raise UserError(
            f"choose_filters: mask is {[*mask.shape]}; expected {[*x.shape[:2]]}, a value for each image and channel"
        )


def _check_device(operator: str, name: str, tensor: Tensor, beside: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise UserError(f"{operator}: {name} is on {tensor.device}; expected {other.device}, where {beside} is")


def _check_weight_dtype(operator: str, name: str, tensor: Tensor) -> None:
    if not (tensor.is_floating_point() or tensor.dtype in (torch.bool, torch.uint8)):
        raise UserError(f"{operator}: {name} is {dtype_name(tensor.dtype)}; expected floating point, bool or uint8")


def _check_floating(operator: str, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise UserError(f"{operator}: {name} is {dtype_name(tensor.dtype)}; expected floating point")
