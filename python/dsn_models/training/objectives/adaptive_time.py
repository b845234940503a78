"""Adaptive computation time: cross-entropy and the ponder cost. Figurnov et al., section 3.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...data import CoarseFineDataset
from ...resnet import ResNet
from ...skipnet import UNITS
from .single_task import SingleTaskObjective


class AdaptiveTimeObjective(SingleTaskObjective):
    """``CE + ponder mean(sum over the stages of N + R)``, N units run and R what was left; gradients pass through R.

    ``init``: a network of the recipe's configuration, or its residual network.
    """

    tables = ("halting",)

    def start_from(self, model: Any, start: Any) -> None:
        if isinstance(start, ResNet):
            model.load_backbone(start)
        else:
            super().start_from(model, start)

    def loss(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        logits, cost = model.pondered(images)
        loss, facts = self.cross_entropy(logits, labels)
        facts |= {"ponder": cost.mean().item(), "units/skipped": 1 - model.last_gates[UNITS].float().mean().item()}
        return loss + self.recipe.halting.ponder * cost.mean(), facts

    def evaluate(self, model: Any, dataset: CoarseFineDataset) -> dict[str, Any]:
        """As of one task, with ``macs`` and ``macs_saved`` beside ``skipped``, halting scores included."""
        result = super().evaluate(model, dataset)
        task, counts = result[self.recipe.task], model.gate_macs
        macs = counts.executed({UNITS: torch.tensor(task["ran"])}).item()
        task |= {"macs": macs, "macs_saved": 1 - macs / counts.dense}
        return result
