"""What makes gates of layers and units learn to decide: a recipe's ``[policy]``, for the families that have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import load
from ..computation import GateMacs, gate_macs
from ..distributed import gather_rows
from ..errors import UserError
from ..gates import PooledGate, set_noise
from .losses import batch_shaping_loss, distillation_loss, information
from .recipe import Recipe


class Policy:
    """The terms of ``[policy]``, summed over the names of a model's gates, and the noise of its decisions.

    ``cost max(0, c - t)^2``, c the batch's mean MACs by :func:`.computation.gate_macs` as a fraction of the network's
    without gates, t the target as it falls; ``- information`` :func:`.losses.information`; ``shaping``
    :func:`.losses.batch_shaping_loss`; ``distillation`` :func:`.losses.distillation_loss`, summed over the tasks.

    Raises:
        UserError: the teacher cannot be read or has other classes than the model.
    """

    def __init__(self, recipe: Recipe, model: Any) -> None:
        self.section = recipe.policy
        self.macs: GateMacs | None = gate_macs(model) if self.section.cost else None
        self.teacher: nn.Module | None = None
        if self.section.teacher is not None:
            teacher: Any = load(self.section.teacher)
            given, wanted = teacher.config.classes, model.config.classes
            if given != wanted:
                raise UserError(f"policy.teacher {self.section.teacher} has {given} classes; the model has {wanted}")
            self.teacher = getattr(teacher, "dense_equivalent", lambda: teacher)().eval()

    def begin_step(self, model: nn.Module, progress: float) -> None:
        """Before a step in which gates learn: how they are to decide. ``progress``: of the phase, 0 to 1."""
        set_noise(model, self.section.noise * max(1 - progress / self.section.noise_end, 0.0))
        for gate in model.modules():
            if isinstance(gate, PooledGate):
                gate.binary = self.section.binary

    def loss(
        self,
        scores: dict[str, Tensor],
        gates: dict[str, Tensor],
        images: Tensor,
        outputs: Sequence[Tensor],
        progress: float,
    ) -> tuple[Tensor, dict[str, float]]:
        """The terms, and facts to log.

        Args:
            scores, gates: by name, [B, L] of the process's own images: probabilities to open and multipliers.
            images: [B, C, H, W].
            outputs: logits of each task.
            progress: of the phase, 0 to 1.
        """
        section, facts = self.section, {}
        loss = torch.zeros((), device=images.device)
        if self.macs is not None:
            whole = {name: gather_rows(taken) for name, taken in gates.items()}
            cost = (self.macs.executed(whole) / self.macs.dense).mean()
            target = 1 - (1 - section.target) * min(progress / section.target_end, 1.0)
            loss = loss + section.cost * (cost - target).clamp(min=0) ** 2
            facts["macs"] = cost.item()
        for name in scores if section.information or section.shaping else ():
            whole_scores = gather_rows(scores[name])
            loss = loss - section.information * information(whole_scores)
            loss = loss + section.shaping * batch_shaping_loss(whole_scores)
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.to(images.device)(images)
            for ours, theirs in zip(outputs, taught if isinstance(taught, tuple) else (taught,), strict=True):
                loss = loss + section.distillation * distillation_loss(ours, theirs, section.temperature)
        return loss, facts
