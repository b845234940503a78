"""One task, trained by cross-entropy: baselines, and what families with gates of their own build on."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...errors import UserError
from .base import Objective, accuracy


class SingleTaskObjective(Objective):
    """Cross-entropy of the recipe's ``task``, "coarse" or "fine"."""

    def class_counts(self, model: Any) -> dict[str, int]:
        recipe = self.recipe
        if recipe.task == "both":
            raise UserError(f"recipe {recipe.name}: task is 'both'; {recipe.model} takes 'coarse' or 'fine'")
        return {recipe.task: model.config.classes}

    def cross_entropy(self, logits: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of logits [B, classes] with the task's labels; it and the accuracy as facts."""
        task = self.recipe.task
        loss = F.cross_entropy(logits, labels[task])
        return loss, {f"{task}/loss": loss.item(), f"{task}/accuracy": accuracy(logits, labels[task])}

    def loss(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        return self.cross_entropy(model(images), labels)
