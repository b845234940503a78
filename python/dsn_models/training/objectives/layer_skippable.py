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

    ``init`` may be a dual skipping network of the same shape.
    """

    tables = ("gates", "lsn")

    def start_from(self, model: Any, start: Any) -> None:
        if type(start) is DualSkippingNetwork and start.config.classes == model.config.classes:
            copy_weights(model, start.state_dict(), f"init {self.recipe.init}")
        else:
            super().start_from(model, start)

    def path_loss(self, logits: Tensor, labels: Tensor, multipliers: Tensor) -> Tensor:
        section = self.recipe.lsn
        if not section.ranking:
            return torch.zeros((), device=logits.device)
        losses = gather_rows(F.cross_entropy(logits.detach(), labels, reduction="none"))
        return section.ranking * ranking_loss(losses, multipliers, section.margin)
