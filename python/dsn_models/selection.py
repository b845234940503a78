"""Computing a gated part for the images that run it, and for no others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .errors import UserError
from .functional import where_open

Compute = Literal["masked", "selected"]


def set_compute(model: nn.Module, compute: Compute) -> None:
    """Says what the gated parts of ``model`` compute in training: "masked", all images, as the papers do, which is
    what a model begins with; or "selected", those whose gate is open. See :func:`run_gated`.

    Raises:
        UserError: ``compute`` is neither, or it is "selected" and the model skips no layers or units.
    """
    if compute not in get_args(Compute):
        raise UserError(f"compute is {compute!r}; expected one of {', '.join(get_args(Compute))}")
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "compute")]
    if compute == "selected" and not parts:
        raise UserError(f"compute is 'selected', but a {type(model).__name__} skips no layers or units; use 'masked'")
    for part in parts:
        part.compute = compute


def run_gated(
    part: nn.Module,
    body: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    gate: Tensor,
    skipped: Tensor | None,
    compute: Compute,
) -> Tensor:
    """``g body(x) + (1 - g) skipped`` for each image; where g is a decision without gradient, the one or the other.

    In ``eval()``, and in training with ``compute = "selected"``, ``body`` runs for the images whose g is not 0 and for
    no others. That is exact, with two differences to the masked form in training:

    - Batch norms take their statistics from the images that run. Where but one of several runs, or none, they keep to
      their running statistics, which a lone image's pixels should not move.
    - The gradient of a gate that is 0 would need the output that was not computed, and is 0. Of what else the loss
      depends on, all gradients are those of the masked form.

    A graph that is captured (``torch.compile``, ``torch.export``, a trace) or only counted (the meta device) has no
    number of images that run, and masks.

    Args:
        part: the module that ``body`` belongs to, whose mode is told from it.
        body: of the rows of ``inputs``, [B, ...] each, to [B, C, H, W].
        inputs: what it reads.
        gate: g, [B]; 0 and 1, bool, or multipliers in [0, 1].
        skipped: what takes the place of its output, [B, C, H, W]; None for zeros.
        compute: in training.

    Returns:
        [B, C, H, W].
    """
    selects = not part.training or compute == "selected"
    if not selects or not _counts_rows(gate):
        return _mix(gate, body(*inputs), skipped)
    rows = gate.detach().nonzero().squeeze(1)
    if len(rows) == len(gate):
        return _mix(gate, body(*inputs), skipped)
    with _running_statistics(part, len(rows) < 2):
        ran = body(*(_Gather.apply(x, rows) for x in inputs))
    if skipped is None:
        return _Scatter.apply(_mix(gate[rows], ran, None), rows, len(gate))
    mixed = _mix(gate[rows], ran, _Gather.apply(skipped, rows))
    return _Scatter.apply(mixed, rows, skipped.to(mixed.dtype))  # which differ where autocast left a wider type


def _mix(gate: Tensor, ran: Tensor, skipped: Tensor | None) -> Tensor:
    if gate.requires_grad and skipped is None:
        return gate.view(-1, *(1 for _ in ran.shape[1:])) * ran
    if not gate.requires_grad and gate.dtype != torch.bool:
        gate = gate != 0
    return where_open(gate, ran, torch.zeros_like(ran) if skipped is None else skipped)


class _Gather(torch.autograd.Function):
    """``x[rows]``, all rows different. Torch's own backward adds row to row, in several times the time."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(x)
        return x[rows]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return _zeros(grad, ctx.count).index_copy_(0, rows, grad), None


class _Scatter(torch.autograd.Function):
    """The given rows within ``around`` [B, ...], or within B rows of zeros where that is a number."""

    @staticmethod
    def forward(ctx, ran: Tensor, rows: Tensor, around: Tensor | int) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.in_zeros = isinstance(around, int)
        base = _zeros(ran, around) if isinstance(around, int) else around.clone()
        return base.index_copy_(0, rows, ran)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (rows,) = ctx.saved_tensors
        return grad[rows], None, None if ctx.in_zeros else grad.clone().index_fill_(0, rows, 0)


def _zeros(rows: Tensor, count: int) -> Tensor:
    """Zeros [count, ...] of the dtype and in the memory format of ``rows`` [B, ...]."""
    last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last) and not rows.is_contiguous()
    form = torch.channels_last if last else torch.contiguous_format
    shape = (count, *rows.shape[1:])
    return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=form).zero_()


def _counts_rows(gate: Tensor) -> bool:
    return not (gate.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing())


@contextlib.contextmanager
def _running_statistics(part: nn.Module, use: bool) -> Iterator[None]:
    norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training] if use else []
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
