"""The thresholds at which a network's gates decide: reading them, and making others its own."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dsn_models import UserError
from dsn_models.gates import PooledGate

from ..measure.networks import gate_counts

_EDGE = 1e-6  # a sigmoid's threshold is kept so far from 0 and 1, where its logit is infinite
_SQUEEZE = 1 / 64  # a power of two, so that weights and sums keep every bit


def own_thresholds(model: Any) -> dict[str, float]:
    """The thresholds of a network's configuration by their name in ``last_gates``.

    Raises:
        UserError: it has no gates.
    """
    config, names = model.config, list(gate_counts(model))
    if not names:
        raise UserError(f"{config.name} has no gates; expected a network that skips layers, units or filters")
    if hasattr(config, "thresholds"):
        return dict(zip(names, map(float, config.thresholds), strict=True))
    return dict.fromkeys(names, float(config.threshold))


def moves_thresholds(model: Any) -> bool:
    """Whether its kernels take thresholds: torch decides the gates of one that halts, between plans."""
    return not hasattr(model, "pondered")


class GateScale:
    """Thresholds and scores of hard gates beyond where these are clipped.

    ``score = clamp(z + 1/2, 0, 1)`` says nothing of how sure a gate is that has settled. In the copy that
    :meth:`network` makes, z is divided by 64, so a threshold t of ``z + 1/2``, from -31.5 to 32.5, takes the place of
    one in [0, 1): a layer that always runs can run for some images alone. Other gates are left as they are.

    Args:
        model: a network with gates.
    """

    def __init__(self, model: Any) -> None:
        self.hard = any(gate.kind == "hard" for gate in _pooled_gates(model))

    @torch.no_grad()
    def network(self, model: Any) -> Any:
        """``model``, or its copy with gates that do not clip."""
        if not self.hard:
            return model
        model = copy.deepcopy(model)
        for gate in _pooled_gates(model):
            for parameter in gate.linear.parameters():
                parameter.mul_(_SQUEEZE)
        return model

    def inner(self, threshold: float) -> float:
        """The threshold in that network of one of ``z + 1/2``."""
        return min(max(0.5 + (threshold - 0.5) * _SQUEEZE, 0.0), 1.0) if self.hard else threshold

    def outer(self, scores: Tensor) -> Tensor:
        """``z + 1/2`` of that network's scores."""
        return 0.5 + (scores.double() - 0.5) / _SQUEEZE if self.hard else scores

    def own(self, model: Any) -> dict[str, float]:
        """:func:`own_thresholds`; a hard gate's score never exceeds 1."""
        limits = own_thresholds(model)
        return {name: 0.5 + 0.5 / _SQUEEZE if self.hard and t >= 1 else t for name, t in limits.items()}


def _pooled_gates(module: Any) -> list[PooledGate]:
    return [gate for gate in module.modules() if isinstance(gate, PooledGate)]


def gates_per_layer(model: Any) -> dict[str, list[int]]:
    """How many gates each layer has, by their name in ``last_gates``: one, or of filters those of a unit."""
    if hasattr(model, "unit_sizes"):
        return {name: list(model.unit_sizes.values()) for name in gate_counts(model)}
    return {name: [1] * count for name, count in gate_counts(model).items()}


def per_gate(model: Any, layers: Mapping[str, Sequence[float]]) -> Tensor:
    """A threshold per layer as one per gate, float32, branch after branch as accelerated networks hold them."""
    limits = [
        limit
        for name, counts in gates_per_layer(model).items()
        for limit, count in zip(layers[name], counts, strict=True)
        for _ in range(count)
    ]
    return torch.tensor(limits, dtype=torch.float32)


@torch.no_grad()
def set_operating_point(
    model: Any, thresholds: Mapping[str, float], layers: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Makes ``thresholds``, or those of the ``layers`` if given, the ones at which ``model`` decides, in place.

    Thresholds per branch go to the configuration, as do those of a SkipNet's units. Otherwise, and where a hard gate's
    lies beyond [0, 1), a layer's own threshold t' in place of its branch's t moves the bias of its gates:
    ``z + b + 1/2 > t'`` of a hard gate is ``z + (b + t - t') + 1/2 > t``; of a sigmoid, the difference is that of the
    logits. So every program that runs the network takes the same decisions.
    """
    config = model.config
    names = list(gate_counts(model))
    fields: dict[str, Any] = {}
    if layers is None and GateScale(model).hard and not all(0 <= t < 1 for t in thresholds.values()):
        layers = {name: [thresholds[name]] * len(counts) for name, counts in gates_per_layer(model).items()}
    if hasattr(config, "layer_thresholds"):
        fields["layer_thresholds"] = None if layers is None else tuple(layers[names[0]])
    elif layers is not None:
        thresholds = _move_biases(model, layers)
    if hasattr(config, "thresholds"):
        fields["thresholds"] = tuple(thresholds[name] for name in names)
    else:
        fields["threshold"] = thresholds[names[0]]
    model.config = dataclasses.replace(config, **fields)


def _move_biases(model: Any, layers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Moves the biases of gates so that one threshold per branch does what ``layers`` say; returns these thresholds."""
    names = list(gate_counts(model))
    if hasattr(model, "gater"):
        model.gater.fc2.bias -= per_gate(model, layers).to(model.gater.fc2.bias)
        return dict.fromkeys(names, 0.0)
    # Between the ends, where a hard gate's clamp cannot hide what the bias moved.
    thresholds = dict.fromkeys(names, 0.5)
    for name in names:
        for gate, limit in zip(_pooled_gates(getattr(model, name)), layers[name], strict=True):
            _move_bias(gate, thresholds[name], limit)
    return thresholds


def _move_bias(gate: PooledGate, branch: float, own: float) -> None:
    gate.linear.bias.add_(branch - own if gate.kind == "hard" else _logit(branch) - _logit(own))


def _logit(share: float) -> float:
    share = min(max(share, _EDGE), 1 - _EDGE)
    return math.log(share / (1 - share))
