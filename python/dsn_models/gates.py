"""Gates that decide, per sample, whether a layer (Dual Skipping Networks) or a filter (GaterNet) runs."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .errors import UserError

GateKind = Literal["hard", "soft"]


class _StraightThroughHardSigmoid(torch.autograd.Function):
    """clamp(k z + 1/2, 0, 1) forward; the gradient of z + 1/2 backward, through the clipped regions too."""

    @staticmethod
    def forward(ctx, logit: Tensor, slope: Tensor) -> Tensor:
        return (slope * logit + 0.5).clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class PooledGate(nn.Module):
    """Gate of one layer: a linear map of the layer's pooled input, then a threshold function.

    With p the global average of the layer's input before its batch norm and z = w . p + b:

    - score (inference, slope 1): ``clamp(z + 1/2, 0, 1)`` if hard, ``sigmoid(z)`` if soft. The layer runs iff
      ``score > threshold``.
    - multiplier (training): ``clamp(k z + 1/2, 0, 1)`` with slope k if hard, ``sigmoid(z)`` if soft. The hard
      multiplier's backward pass uses k = 1 and passes straight through the clipped regions.

    Args:
        channels: channels of the layer's input.
        kind: ``"hard"`` or ``"soft"``.

    Raises:
        UserError: ``kind`` is neither.
    """

    slope: Tensor

    def __init__(self, channels: int, kind: GateKind = "hard") -> None:
        super().__init__()
        if kind not in get_args(GateKind):
            raise UserError(f"gate kind is {kind!r}; expected 'hard' or 'soft'")
        self.kind: GateKind = kind
        self.linear = nn.Linear(channels, 1)
        self.register_buffer("slope", torch.tensor(1.0))

    @property
    def learns(self) -> bool:
        """False once ``requires_grad_(False)`` froze the gate; it then decides in training as in inference."""
        return self.linear.weight.requires_grad

    def logit(self, pooled: Tensor) -> Tensor:  # [B, C] -> [B]
        """z = w . p + b. ``pooled`` [B, C] floating point; returns [B]."""
        return self.linear(pooled).squeeze(1)

    def score(self, pooled: Tensor) -> Tensor:  # [B, C] -> [B]
        """The slope-1 score in [0, 1] that inference compares with the threshold. [B, C] to [B]."""
        z = self.logit(pooled)
        return (z + 0.5).clamp(0.0, 1.0) if self.kind == "hard" else z.sigmoid()

    def forward(self, pooled: Tensor) -> Tensor:  # [B, C] -> [B]
        """The multiplier in [0, 1] that training applies to the layer's output. [B, C] to [B]."""
        logit = self.logit(pooled)
        if self.kind == "soft":
            return logit.sigmoid()
        return _StraightThroughHardSigmoid.apply(logit, self.slope)


def set_slope(module: nn.Module, slope: float) -> None:
    """Sets the slope k of every :class:`PooledGate` in ``module``.

    Raises:
        UserError: ``slope`` is not positive.
    """
    if not slope > 0:
        raise UserError(f"gate slope is {slope}; expected a positive number")
    for gate in module.modules():
        if isinstance(gate, PooledGate):
            gate.slope.fill_(slope)


def saturating_sigmoid(x: Tensor) -> Tensor:
    """``clamp(1.2 sigmoid(x) - 0.1, 0, 1)``, any shape. GaterNet (https://arxiv.org/abs/1811.11205), section 3.2.2."""
    return (1.2 * x.sigmoid() - 0.1).clamp(0.0, 1.0)


class _StraightThroughStep(torch.autograd.Function):
    """1 where x > 0, else 0, forward; the gradient of :func:`saturating_sigmoid` backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        saturated = (1.2 * s - 0.1 <= 0) | (1.2 * s - 0.1 >= 1)
        return torch.where(saturated, torch.zeros_like(grad), grad * 1.2 * s * (1 - s))


def improved_semhash(scores: Tensor, discrete: Tensor) -> Tensor:  # [B, c], [B] -> [B, c]
    """Improved SemHash without its noise: differentiable gates. GaterNet, section 3.2.2.

    ``g_alpha = saturating_sigmoid(scores)`` for samples where ``discrete`` is False, ``g_beta = 1(scores > 0)`` with
    g_alpha's gradient where it is True. ``scores`` [B, c] floating point, ``discrete`` bool [B]; returns [B, c] in
    [0, 1].
    """
    return torch.where(discrete[:, None], _StraightThroughStep.apply(scores), saturating_sigmoid(scores))
