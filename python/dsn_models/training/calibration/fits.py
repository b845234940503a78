"""Fits gates to harm: which begin to skip, for which images; one fit for each kind of gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...dual_skipping import DualSkippingNetwork
from ...gaternet import FILTERS, GaterNet
from ...gates import PooledGate
from ...skipnet import UNITS, SkipNet, resolve_thresholds
from ..evaluation import all_open
from ..losses import open_gates
from .harm import filter_harm, layer_harm

# A gate that skips is shut for about this fraction of the images. The fewer gates share the skipping, the fewer paths
# the weights have to adapt to: a residual network without pre-activation needs that more.
_SHUT_LAYER, _SHUT_UNIT = 0.5, 0.8
_SPREAD = 0.25  # standard deviation of a pooled gate's logit over the images
_RIDGE = 1e-2
_STEPS, _LR = 200, 2e-2
# A filter's first score lies between these and rises this fast with the rank of its harm in [0, 1]. SemHash's noise has
# a standard deviation of 1: the ends seldom flip, those between learn from it.
_LOWEST, _HIGHEST, _SLOPE = -1.0, 2.0, 8.0


def _sharing(gates: int, fraction: float, shut: float) -> int:
    """How many of the gates share the skipping, if each of them is shut for about ``shut`` of the images."""
    return min(round((1 - fraction) * gates / shut), gates)


def _inputs(gates: list[nn.Module], model: Any, images: Tensor) -> list[Tensor]:
    """What each gate reads when every layer runs, in the order of ``gates``."""
    inputs: dict[nn.Module, Tensor] = {}
    handles = [g.register_forward_pre_hook(lambda gate, args: inputs.__setitem__(gate, args[0])) for g in gates]
    with torch.no_grad():
        model(images, forced_gates=all_open(model, len(images)))
    for handle in handles:
        handle.remove()
    return [inputs[gate] for gate in gates]


def _pooled_gates(model: DualSkippingNetwork, branch: str) -> list[PooledGate]:
    return [gate for gate in getattr(model, branch).modules() if isinstance(gate, PooledGate)]


@torch.no_grad()
def fit_pooled_gates(
    model: DualSkippingNetwork, images: Tensor, labels: Mapping[str, Tensor], fractions: Mapping[str, float]
) -> None:
    """DSN, LSN: each branch's gates of the least mean harm begin shut for half of the images, the others open for all.

    w and b follow from a ridge regression of the (signed root of the) harm to each image on the gate's pooled input,
    shifted to its median and scaled to a standard deviation of 1/4.
    """
    harm = layer_harm(model, images, labels)
    inputs = {name: _inputs([gate.linear for gate in _pooled_gates(model, name)], model, images) for name in harm}
    open_gates(model)
    for name, rises in harm.items():
        gates = _pooled_gates(model, name)
        count = _sharing(len(gates), fractions[name], _SHUT_LAYER)
        for layer in rises.mean(0).argsort()[:count].tolist():
            x = inputs[name][layer].double()
            scale = x.std(0).clamp(min=1e-6)
            centred = (x - x.mean(0)) / scale
            wanted = rises[:, layer].double().sign() * rises[:, layer].double().abs().sqrt()
            gram = centred.T @ centred / len(x) + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
            weight = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean()) / len(x)) / scale
            logit = x @ weight
            weight = weight * _SPREAD / logit.std().clamp(min=1e-12)
            gates[layer].linear.weight.copy_(weight[None])
            gates[layer].linear.bias.copy_(-(x @ weight).median()[None])


def recentre_pooled_gates(model: DualSkippingNetwork, images: Tensor, fractions: Mapping[str, float]) -> None:
    """Each gate that looks at its input (its weight is not 0) is again open for half of the images."""

    def shift(linear: Any, args: tuple[Tensor, ...]) -> None:
        if linear.weight.any():
            linear.bias.copy_(-(args[0] @ linear.weight[0]).median()[None])

    gates = [gate for name in fractions for gate in _pooled_gates(model, name)]
    handles = [gate.linear.register_forward_pre_hook(shift) for gate in gates]
    model(images)
    for handle in handles:
        handle.remove()


def fit_unit_gates(
    model: SkipNet, images: Tensor, labels: Mapping[str, Tensor], fractions: Mapping[str, float]
) -> None:
    """SkipNet: a few gates share the skipping evenly, each shut for the images whose harm is least; others stay open.

    The few are chosen one by one, each for the least mean harm beside those chosen before, since two units of one stage
    are missed far more than either. All scores are fitted together by cross-entropy to that, since recurrent gates
    share weights; the bias of the last linear layers is then shifted until the fraction is met. The backbone is fixed.
    """
    fraction, units = fractions[UNITS], model.gate_counts[UNITS]
    harm = layer_harm(model, images, labels)[UNITS]
    needed = torch.ones_like(harm)
    chosen: list[int] = []
    count = _sharing(units, fraction, _SHUT_UNIT)
    for _ in range(count):
        beside = layer_harm(model, images, labels, chosen)[UNITS].mean(0) if chosen else harm.mean(0)
        beside[chosen] = torch.inf
        gate = int(beside.argmin())
        shut = min((1 - fraction) * units / count, 1.0)
        needed[:, gate] = (harm[:, gate] > harm[:, gate].quantile(shut)).to(harm.dtype)
        chosen.append(gate)
    inputs = _inputs(list(model.gates)[:-1], model, images)
    optimiser = torch.optim.Adam(model.gate_parameters(), lr=_LR)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        F.binary_cross_entropy(model.gate_scores(inputs), needed).backward()
        optimiser.step()
    optimiser.zero_grad()
    with torch.no_grad():
        _shift_units(model, model.gate_scores(inputs), fraction)


def recentre_unit_gates(model: SkipNet, images: Tensor, fractions: Mapping[str, float]) -> None:
    """The gates' logits are shifted together until the fraction is met again, recurrent gates sharing their last bias.

    A shift changes what is skipped and so what later gates read; three rounds settle that.
    """
    for _ in range(3):
        model(images)
        _shift_units(model, model.last_scores[UNITS], fractions[UNITS])


def _shift_units(model: SkipNet, scores: Tensor, fraction: float) -> None:
    """Shifts the logits so that ``fraction`` of ``scores`` [B, L] would exceed their thresholds."""
    thresholds = scores.new_tensor(resolve_thresholds(None, model.config))
    shift = (scores.logit(eps=1e-6) - thresholds.logit(eps=1e-6)).quantile(1 - fraction)
    for linear in model.last_linears():
        linear.bias[-1] -= shift


def fit_filter_gates(
    model: GaterNet, images: Tensor, labels: Mapping[str, Tensor], fractions: Mapping[str, float]
) -> None:
    """GaterNet: the gater's last biases are ``clamp(8 (r - off), -1, 2)``, r in [0, 1] the rank of a filter's harm.

    About the fraction ``off = 1 - fraction`` of the filters begins off, those of the smallest harm; the gater's last
    weights add what depends on the image.
    """
    harm = filter_harm(model, images, labels)
    rank = harm.argsort().argsort() / (len(harm) - 1)
    with torch.no_grad():
        model.gater.fc2.bias.copy_((_SLOPE * (rank - (1 - fractions[FILTERS]))).clamp(_LOWEST, _HIGHEST))
