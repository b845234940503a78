"""The thresholds at which a network's gates decide: reading them, and making others its own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsn_models import UserError
from dsn_models.gates import PooledGate
from dsn_models.skipnet import FeedForwardGate

from .networks import gate_counts

_EDGE = 1e-6  # a sigmoid's threshold is kept so far from 0 and 1, where its logit is infinite


def own_thresholds(model: Any) -> dict[str, float]:
    """The thresholds of a network's configuration by their name in ``last_gates``.

    Raises:
        UserError: it has no gates, or gates without a threshold.
    """
    config, names = model.config, list(gate_counts(model))
    if hasattr(config, "thresholds"):
        return dict(zip(names, map(float, config.thresholds), strict=True))
    if names and hasattr(config, "threshold"):
        return dict.fromkeys(names, float(config.threshold))
    raise UserError(f"{config.name} has no gate thresholds to sweep; expected a dual skipping network or a SkipNet")


def layer_gates(model: Any) -> dict[str, list[nn.Module]]:
    """Every layer's own gate, by name.

    Raises:
        UserError: the layers share one gate.
    """
    gates: dict[str, list[nn.Module]] = {}
    for name, count in gate_counts(model).items():
        part = getattr(model, name) if name in ("coarse", "fine") else model
        found: list[nn.Module] = [gate for gate in part.modules() if isinstance(gate, (PooledGate, FeedForwardGate))]
        found = found[:count]  # a SkipNet's last gate decides nothing
        if len(found) != count:
            raise UserError(f"{model.config.name} has one gate for all its layers; thresholds per layer need one each")
        gates[name] = found
    return gates


@torch.no_grad()
def set_operating_point(
    model: Any, thresholds: Mapping[str, float], layers: Mapping[str, Sequence[float]] | None = None
) -> None:
    """Makes ``thresholds``, and those of the ``layers`` if given, the ones at which ``model`` decides, in place.

    Thresholds per branch go to the configuration. A layer's own threshold t' in place of its branch's t moves its
    gate's bias: ``z + b + 1/2 > t'`` of a hard gate is ``z + (b + t - t') + 1/2 > t``; of a sigmoid, the difference is
    that of the logits. So every program that runs the network takes the same decisions.

    Raises:
        UserError: ``layers`` is given and the layers share one gate.
    """
    config = model.config
    names = list(gate_counts(model))
    if layers is not None:
        # Away from the ends a hard gate's clamp cannot hide what the bias moved.
        thresholds = dict.fromkeys(names, 0.5)
        for name, gates in layer_gates(model).items():
            for gate, limit in zip(gates, layers[name], strict=True):
                _move_bias(gate, thresholds[name], limit)
    if hasattr(config, "thresholds"):
        fields: dict[str, Any] = {"thresholds": tuple(thresholds[name] for name in names)}
    else:
        fields = {"threshold": thresholds[names[0]]}
    model.config = dataclasses.replace(config, **fields)


def _move_bias(gate: Any, branch: float, own: float) -> None:
    hard = isinstance(gate, PooledGate) and gate.kind == "hard"
    bias: Tensor = gate.linear.bias
    if not hard:
        bias[-1] += _logit(branch) - _logit(own)
    elif own >= 1:  # the score is at most 1: never
        gate.linear.weight.zero_()
        bias.fill_(-1.0)
    else:
        bias[-1] += branch - own


def _logit(share: float) -> float:
    share = min(max(share, _EDGE), 1 - _EDGE)
    return math.log(share / (1 - share))
