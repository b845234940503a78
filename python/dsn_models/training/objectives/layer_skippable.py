"""Layer-skippable networks: the objective of dual skipping networks and the ranking loss of the gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...distributed import gather_rows
from ...dual_skipping import DualSkippingNetwork
from ..losses import ranking_loss
from .base import copy_weights
from .dual_skipping import DualSkippingObjective


class LayerSkippableObjective(DualSkippingObjective):
    """In the gated phase, :func:`ranking_loss` of each branch joins by ``lsn.ranking``. Our reading of the abstract.

    ``init`` may be a dual skipping network of the same shape; from one without a guide, the guide's channels begin with
    zero weight in the fine branch's last transition.
    """

    tables = ("gates", "policy", "lsn")

    def start_from(self, model: Any, start: Any) -> None:
        if type(start) is DualSkippingNetwork and start.config.classes == model.config.classes:
            weights = start.state_dict()
            if model.config.guide and not start.config.guide:
                _widen_for_guide(model, weights)
            copy_weights(model, weights, f"init {self.recipe.init}")
        else:
            super().start_from(model, start)

    def path_loss(self, logits: Tensor, labels: Tensor, multipliers: Tensor) -> Tensor:
        section = self.recipe.lsn
        if not section.ranking:
            return torch.zeros((), device=logits.device)
        losses = gather_rows(F.cross_entropy(logits.detach(), labels, reduction="none"))
        return section.ranking * ranking_loss(losses, multipliers, section.margin)


def _widen_for_guide(model: Any, weights: dict[str, Tensor]) -> None:
    """Adds to the tensors of the fine branch's last transition what the guide's channels need, of zero effect."""
    prefix = f"fine.transitions.{len(model.fine.transitions) - 1}."
    for name, own in model.fine.transitions[-1].state_dict().items():
        given = weights.get(prefix + name)
        axis = 1 if name == "conv.weight" else 0
        if given is not None and given.dim():
            added = own.narrow(axis, given.shape[axis], own.shape[axis] - given.shape[axis])
            weights[prefix + name] = torch.cat([given, torch.zeros_like(added) if axis else added], axis)
