"""A GaterNet: the network whose filters are chosen, and the one that chooses them."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from dsn_models.densenet import Head
from dsn_models.errors import UserError
from dsn_models.gaternet import FILTERS, Gater, GaterNet, find_gate_points, resolve_threshold
from dsn_models.resnet import ResNet

from .folding import fold
from .registry import FAMILIES, Chosen, Family, family_of


def _choose(model: GaterNet) -> Chosen:
    masks = {point.module: point.gates.start for point in model.gate_points}
    masks |= {conv.conv: conv.gates.start for point in model.gate_points for conv in point.convolutions}
    return Chosen(model.backbone, masks, _with_first_linear(model.gater), model.gater.fc2)


def _with_first_linear(gater: Gater) -> ResNet:
    """The gater's features and, in place of a classifier, its first linear map with the batch norm behind it."""
    scale, shift = fold(gater.norm)
    linear = nn.Linear(gater.fc1.in_features, gater.fc1.out_features, dtype=scale.dtype)
    linear.weight.data = gater.fc1.weight.double() * scale[:, None]
    linear.bias.data = gater.fc1.bias.double() * scale + shift
    features = copy.deepcopy(gater.features)
    if isinstance(features.head, Head):
        features.head.classifier = linear
    else:
        classifiers: Any = features.head
        classifiers[-1] = linear
    return features


def _blueprint(model: Any) -> nn.Module:
    """Around the backbone that is given."""
    fresh: Any = GaterNet(model.config)
    family = family_of(model.backbone)
    if family is None:
        raise UserError(f"backbone is a {type(model.backbone).__name__}, which is of no family that has kernels")
    fresh.backbone = FAMILIES[family].blueprint(model.backbone)
    fresh.gate_points = find_gate_points(fresh.backbone, model.config.gated)
    fresh.gater.fc2 = nn.Linear(model.config.bottleneck, fresh.num_gates)
    return fresh


FAMILIES[GaterNet] = Family(
    _blueprint,
    chosen=_choose,
    limits=lambda thresholds, config: {FILTERS: resolve_threshold(thresholds, config)},
)
