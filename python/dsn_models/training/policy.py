"""What makes gates of layers and units learn to decide: a recipe's ``[policy]``, for the families that have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints import load
from ..computation import GateMacs, gate_macs, read_gate_costs
from ..distributed import gather_rows, own_rows, world_size
from ..errors import UserError
from ..gates import PooledGate, SemHash, set_noise
from .evaluation import all_open
from .losses import batch_shaping_loss, class_information, distillation_loss, information, ranking_loss
from .recipe import Recipe


class Policy:
    """The terms of ``[policy]``, summed over the names of a model's gates, and the noise of its decisions.

    - ``cost max(0, c - t)^2``, c the batch's mean MACs by :func:`.computation.gate_macs` as a fraction of those of the
      network without gates, t the target as it falls; per image, the mean over images of this with c its own. With
      ``costs``, measured milliseconds stand for MACs here and in the ranking;
    - ``- information`` times :func:`.losses.information`;
    - ``- classes`` times :func:`.losses.class_information`;
    - ``shaping`` times :func:`.losses.batch_shaping_loss`;
    - ``ranking`` times :func:`.losses.ranking_loss`, of MACs;
    - ``distillation`` times :func:`.losses.distillation_loss`, summed over the tasks.

    Args:
        recipe: has the ``[policy]``.
        model: gated.
        teacher: in ``eval()``; read from the recipe's ``policy.teacher`` if not given.

    Raises:
        UserError: the teacher, the costs or the pattern cannot be read, or they are of another network.
    """

    def __init__(self, recipe: Recipe, model: Any, teacher: nn.Module | None = None) -> None:
        self.section = recipe.policy
        self.macs: GateMacs = gate_macs(model)
        costs = self.section.costs
        self.costs = self.macs if costs is None else read_gate_costs(costs, model.gate_counts)
        #: What all gates are held at, [1, L] by name; None where they learn.
        self.pattern: dict[str, Tensor] | None = None
        if self.section.pattern is not None:
            self.pattern = read_pattern(self.section.pattern, model.gate_counts)
        self.teacher = teacher
        if self.section.teacher is not None and teacher is None:
            read: Any = load(self.section.teacher)
            given, wanted = read.config.classes, model.config.classes
            if given != wanted:
                raise UserError(f"policy.teacher {self.section.teacher} has {given} classes; the model has {wanted}")
            self.teacher = getattr(read, "dense_equivalent", lambda: read)().eval()

    def begin_step(self, model: nn.Module, progress: float) -> None:
        """Before a step in which gates learn: how they are to decide. ``progress``: of the phase, 0 to 1."""
        hashes = [module for module in model.modules() if isinstance(module, SemHash)]
        if self.section.noise or not hashes:  # a GaterNet's own noise stays where the recipe says none
            set_noise(model, self.section.noise * max(1 - progress / self.section.noise_end, 0.0))
        for gate in model.modules():
            if isinstance(gate, PooledGate | SemHash):
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
        cost = self.costs.executed(whole) / self.costs.dense
        target = 1 - (1 - section.target) * min(progress / section.target_end, 1.0)
        over = (cost.mean() if section.per == "batch" else cost) - target
        loss = loss + section.cost * (over.clamp(min=0) ** 2).mean()
        for name in whole if section.ranking else ():
            weights = self.costs.gates[name].to(whole[name])
            hardness = gather_rows(F.cross_entropy(served[name][0].detach(), served[name][1], reduction="none"))
            ranked = ranking_loss(hardness, whole[name] * weights / weights.mean(), section.margin)
            loss = loss + section.ranking * ranked
        for name in scores if section.information or section.classes or section.shaping else ():
            whole_scores = gather_rows(scores[name])
            loss = loss - section.information * information(whole_scores)
            loss = loss - section.classes * class_information(whole_scores, gather_rows(served[name][1]))
            loss = loss + section.shaping * batch_shaping_loss(whole_scores)
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.to(images.device)(images)
            teachings = taught if isinstance(taught, tuple) else (taught,)
            for (ours, _), theirs in zip(served.values(), teachings, strict=True):
                loss = loss + section.distillation * distillation_loss(ours, theirs, section.temperature)
        facts = {"macs": (self.macs.executed(whole) / self.macs.dense).mean().item()}
        if section.costs is not None:
            facts["latency"] = cost.mean().item()
        return loss, facts

    def ungated(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """Gates of an ungated step, uint8 [B, L] by name: each 0 with the probability ``depth``, else 1."""
        if not self.section.depth:
            return all_open(model, len(images))
        count = len(images) * world_size()
        draws = {name: own_rows(torch.rand(count, gates)) for name, gates in model.gate_counts.items()}
        return {name: (draw >= self.section.depth).byte().to(images.device) for name, draw in draws.items()}


def read_pattern(path: str | Path, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The static pattern of a file of ``dsn eval --controls --json``, or what a file holds by the gates' name.

    Args:
        path: JSON.
        counts: of the model's gates, by name.

    Returns:
        uint8 [1, L] by name.

    Raises:
        UserError: it cannot be read, holds something else, or is of a network with other gates.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = content.get("controls", content)
        found = found.get("static_pattern", found)
        pattern = {str(name): [int(value) for value in values] for name, values in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no pattern of gates ({error!r}); dsn eval CKPT --controls --json writes one"
        ) from error
    given = {name: len(values) for name, values in pattern.items()}
    if given != dict(counts) or any(value not in (0, 1) for values in pattern.values() for value in values):
        raise UserError(
            f"{path} has a pattern of {given} gates; expected 0 or 1 for each of the model's {dict(counts)}"
        )
    return {name: torch.tensor([values], dtype=torch.uint8) for name, values in pattern.items()}
