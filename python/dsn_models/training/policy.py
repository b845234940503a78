"""What makes gates of layers and units learn to decide: a recipe's ``[policy]``, for the families that have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints import load
from ..computation import GateMacs, gate_macs
from ..distributed import gather_rows, own_rows, world_size
from ..errors import UserError
from ..gates import PooledGate, set_noise
from .losses import batch_shaping_loss, distillation_loss, information, ranking_loss
from .recipe import Recipe


class Policy:
    """The terms of ``[policy]``, summed over the names of a model's gates, and the noise of its decisions.

    - ``cost max(0, c - t)^2``, c the batch's mean MACs by :func:`.computation.gate_macs` as a fraction of those of the
      network without gates, t the target as it falls;
    - ``- information`` times :func:`.losses.information`;
    - ``shaping`` times :func:`.losses.batch_shaping_loss`;
    - ``ranking`` times :func:`.losses.ranking_loss`, of MACs;
    - ``distillation`` times :func:`.losses.distillation_loss`, summed over the tasks.

    Args:
        recipe: has the ``[policy]``.
        model: gated.
        teacher: in ``eval()``; read from the recipe's ``policy.teacher`` if not given.

    Raises:
        UserError: the teacher cannot be read or has other classes than the model.
    """

    def __init__(self, recipe: Recipe, model: Any, teacher: nn.Module | None = None) -> None:
        self.section = recipe.policy
        self.macs: GateMacs = gate_macs(model)
        self.teacher = teacher
        if self.section.teacher is not None and teacher is None:
            read: Any = load(self.section.teacher)
            given, wanted = read.config.classes, model.config.classes
            if given != wanted:
                raise UserError(f"policy.teacher {self.section.teacher} has {given} classes; the model has {wanted}")
            self.teacher = getattr(read, "dense_equivalent", lambda: read)().eval()

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
        served: dict[str, tuple[Tensor, Tensor]],
        images: Tensor,
        progress: float,
    ) -> tuple[Tensor, dict[str, float]]:
        """The terms, and facts to log.

        Args:
            scores, gates: by name, [B, L] of the process's own images: probabilities to open and multipliers.
            served: by the same names, logits [B, classes] and labels [B] of the task that the gates serve.
            images: [B, C, H, W].
            progress: of the phase, 0 to 1.
        """
        section = self.section
        loss = torch.zeros((), device=images.device)
        whole = {name: gather_rows(taken) for name, taken in gates.items()}
        cost = (self.macs.executed(whole) / self.macs.dense).mean()
        target = 1 - (1 - section.target) * min(progress / section.target_end, 1.0)
        loss = loss + section.cost * (cost - target).clamp(min=0) ** 2
        for name in whole if section.ranking else ():
            weights = self.macs.gates[name].to(whole[name])
            hardness = gather_rows(F.cross_entropy(served[name][0].detach(), served[name][1], reduction="none"))
            ranked = ranking_loss(hardness, whole[name] * weights / weights.mean(), section.margin)
            loss = loss + section.ranking * ranked
        for name in scores if section.information or section.shaping else ():
            whole_scores = gather_rows(scores[name])
            loss = loss - section.information * information(whole_scores)
            loss = loss + section.shaping * batch_shaping_loss(whole_scores)
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.to(images.device)(images)
            teachings = taught if isinstance(taught, tuple) else (taught,)
            for (ours, _), theirs in zip(served.values(), teachings, strict=True):
                loss = loss + section.distillation * distillation_loss(ours, theirs, section.temperature)
        return loss, {"macs": cost.item()}

    def left_out(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """Gates of an ungated step, uint8 [B, L] by name: each 0 with the probability ``depth``."""
        count = len(images) * world_size()
        draws = {name: own_rows(torch.rand(count, gates)) for name, gates in model.gate_counts.items()}
        return {name: (draw >= self.section.depth).byte().to(images.device) for name, draw in draws.items()}
