"""Gates that decide, per sample, whether a layer (Dual Skipping Networks) or a filter (GaterNet) runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .distributed import own_rows, world_size
from .errors import UserError

GateKind = Literal["hard", "soft"]
ForcedGates = Mapping[str, Tensor]


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
        normalised: p is normalised by a batch norm without weights first. Our option: the channels of a concatenation
            differ in size by much, and a linear map of them learns as fast as its largest allows.

    Raises:
        UserError: ``kind`` is neither.
    """

    slope: Tensor
    #: In training the multiplier is a decision, 1(sigmoid(z) > 1/2) with the gradient of sigmoid(z). Our option.
    binary: bool = False
    #: Scale of the noise that such a decision is taken with; see :func:`noisy`.
    noise: float = 0.0

    def __init__(self, channels: int, kind: GateKind = "hard", normalised: bool = False) -> None:
        super().__init__()
        if kind not in get_args(GateKind):
            raise UserError(f"gate kind is {kind!r}; expected 'hard' or 'soft'")
        self.kind: GateKind = kind
        self.norm = nn.BatchNorm1d(channels, affine=False) if normalised else None
        self.linear = nn.Linear(channels, 1)
        self.register_buffer("slope", torch.tensor(1.0))

    @property
    def learns(self) -> bool:
        """False once ``requires_grad_(False)`` froze the gate; it then decides in training as in inference."""
        return self.linear.weight.requires_grad

    def logit(self, pooled: Tensor) -> Tensor:  # [B, C] -> [B]
        """z = w . p + b. ``pooled`` [B, C] floating point; returns [B]."""
        norm = self.norm
        if norm is not None and self.training and self.learns:
            pooled = norm(pooled)
        elif norm is not None:  # a frozen gate decides as in inference
            pooled = F.batch_norm(pooled, norm.running_mean, norm.running_var, eps=norm.eps)
        return self.linear(pooled).squeeze(1)

    def score(self, pooled: Tensor) -> Tensor:  # [B, C] -> [B]
        """The slope-1 score in [0, 1] that inference compares with the threshold. [B, C] to [B]."""
        z = self.logit(pooled)
        return (z + 0.5).clamp(0.0, 1.0) if self.kind == "hard" else z.sigmoid()

    def forward(self, pooled: Tensor) -> Tensor:  # [B, C] -> [B]
        """The multiplier in [0, 1] that training applies to the layer's output. [B, C] to [B]."""
        logit = self.logit(pooled)
        if self.binary:
            return noisy_decision(logit.sigmoid(), 0.5, self.noise)
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


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value`` forward, ``surrogate``'s gradient backward; both of one shape and dtype."""
    return _StraightThrough.apply(value, surrogate)


def noisy(score: Tensor, scale: float) -> Tensor:
    """``sigmoid(logit(score) + scale n)`` with n drawn from the logistic distribution; ``score`` if ``scale`` is 0.

    With scale 1 the result exceeds 1/2 with the probability ``score``: the binary concrete distribution (Maddison et
    al., https://arxiv.org/abs/1611.00712) at temperature 1. ``score``: probabilities [B, ...], the process's own rows.
    """
    if not scale:
        return score
    draw = own_rows(torch.rand(len(score) * world_size(), *score.shape[1:])).to(score).clamp(1e-6, 1 - 1e-6)
    return (score.logit(1e-6) + scale * draw.logit()).sigmoid()


def noisy_decision(score: Tensor, threshold: float, noise: float) -> Tensor:
    """``1(s > threshold)`` with the gradient of s, the ``score`` with noise of that scale; see :func:`noisy`."""
    score = noisy(score, noise)
    return straight_through((score > threshold).to(score.dtype), score)


def set_noise(module: nn.Module, scale: float) -> None:
    """Sets the scale of the noise that every gate in ``module`` decides with in training; see :func:`noisy`."""
    part: Any
    for part in module.modules():
        if hasattr(part, "noise"):
            part.noise = scale


class SemHash(nn.Module):
    """Improved SemHash: real scores to binary gates that learn. GaterNet, section 3.2.2.

    - ``eval()``: ``1(s > 0)``.
    - ``train()``: with noise e ~ N(0, 1), half of the samples, drawn anew each time, use
      ``g_alpha = saturating_sigmoid(s + e)``, the others ``g_beta = 1(s + e > 0)`` with g_alpha's gradient.

    ``noise`` scales e; with ``binary`` all samples use g_beta. Both are our options.

    ``forward``: scores [B, c] floating point to gates [B, c] in [0, 1] of the same dtype.
    """

    noise: float = 1.0
    binary: bool = False

    def forward(self, scores: Tensor) -> Tensor:  # [B, c] -> [B, c]
        if not self.training:
            return (scores > 0).to(scores.dtype)
        batch = len(scores) * world_size()
        draw = own_rows(torch.randn(batch, scores.shape[1], dtype=scores.dtype, device=scores.device))
        noisy = scores + self.noise * draw
        alpha = saturating_sigmoid(noisy)
        of_samples = batch if self.binary else batch // 2
        binary = own_rows(torch.randperm(batch, device=scores.device) < of_samples)
        return torch.where(binary[:, None], straight_through((noisy > 0).to(alpha.dtype), alpha), alpha)


def check_keys(given: Iterable[str], argument: str, names: Iterable[str]) -> None:
    """Refuses a mapping whose keys are not ``names``.

    Raises:
        UserError: in one line, the keys given and those expected.
    """
    if set(given) != set(names):
        expected = " and ".join(repr(name) for name in names)
        raise UserError(f"{argument} has the keys {sorted(given)}; expected {expected}")


def resolve_forced_gates(
    forced_gates: ForcedGates | None, batch: int, counts: Mapping[str, int]
) -> dict[str, Tensor | None]:
    """The forced gates by name after checking, or None for each. ``counts``: number of gates by name.

    Raises:
        UserError: a name is missing or unknown, or a tensor is not [batch, count] of 0 and 1; see
            :func:`zeros_and_ones`.
    """
    if forced_gates is None:
        return dict.fromkeys(counts)
    if not isinstance(forced_gates, Mapping):
        expected = " and ".join(repr(name) for name in counts)
        raise UserError(f"forced_gates is a {type(forced_gates).__name__}; expected a mapping with {expected}")
    check_keys(forced_gates, "forced_gates", counts)
    resolved: dict[str, Tensor | None] = {}
    for name, count in counts.items():
        resolved[name] = zeros_and_ones(name, forced_gates[name], [batch, count])
    return resolved


def zeros_and_ones(name: str, gates: object, shape: list[int]) -> Tensor:
    """Forced gates of any type that holds 0 and 1, as uint8.

    Args:
        name: theirs, for what is told.
        gates: bool, or whole or real numbers, of ``shape``. Where a program is compiled or captured, values are not
            known yet, and everything but 0 stands for 1.

    Raises:
        UserError: they are no such tensor, or hold another number.

    >>> zeros_and_ones("units", torch.tensor([[True, False]]), [1, 2])
    tensor([[1, 0]], dtype=torch.uint8)
    """
    if not isinstance(gates, Tensor) or gates.dtype.is_complex or list(gates.shape) != shape:
        given = f"{gates.dtype} {list(gates.shape)}" if isinstance(gates, Tensor) else type(gates).__name__
        raise UserError(f"forced_gates['{name}'] is {given}; expected 0 and 1, such as torch.uint8, {shape}")
    unknown = torch.compiler.is_compiling() or (gates.is_cuda and torch.cuda.is_current_stream_capturing())
    plain = gates.dtype == torch.uint8 and not unknown and not gates.is_meta  # the usual case, in one operation
    if plain and (gates.numel() == 0 or int(gates.max()) <= 1):
        return gates
    if gates.dtype != torch.bool and not gates.is_meta and not unknown:
        wrong = gates[(gates != 0) & (gates != 1)]
        if wrong.numel():
            raise UserError(f"forced_gates['{name}'] holds {wrong[0].item():g}; expected only 0 and 1")
    return gates if gates.dtype == torch.uint8 else (gates != 0).to(torch.uint8)
