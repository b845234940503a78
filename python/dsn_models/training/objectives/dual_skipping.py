"""Dual skipping networks: cross-entropy of both branches and the terms on their gates. Section 4 of the paper."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...data import CoarseFineDataset
from ...distributed import gather_rows
from ...dual_skipping import BRANCHES
from ...errors import UserError
from ...gates import set_slope
from ..calibration import calibrate, recentre
from ..losses import GateRecorder, auxiliary_loss, freeze_gates, open_gates, sparsity_loss
from .base import GATED_PHASES, Objective, Phase, accuracy


class DualSkippingObjective(Objective):
    """Phases "ungated" (every layer runs), "gated" (the gates learn), "settled" (they are frozen and decide as in
    inference).

    The loss is the sum of both branches' cross-entropies; in the gated phase also :func:`auxiliary_loss` and
    :func:`sparsity_loss`, by the weights in the recipe's ``[gates]``, and the terms of ``[policy]``.
    """

    tables: ClassVar[tuple[str, ...]] = ("gates", "policy")
    phase_keys: ClassVar[tuple[str, ...]] = GATED_PHASES

    def class_counts(self, model: Any) -> dict[str, int]:
        recipe = self.recipe
        if recipe.task != "both":
            raise UserError(f"recipe {recipe.name}: task is {recipe.task!r}; {recipe.model} takes 'both'")
        return dict(zip(BRANCHES, model.config.classes, strict=True))

    def phases(self) -> list[Phase]:
        return self.gated_phases()

    def initialise(self, model: Any) -> None:
        super().initialise(model)
        self.policy(model)  # a teacher that does not fit is refused before the first step

    def _fractions(self) -> dict[str, float]:
        return dict(zip(BRANCHES, self.recipe.gates.target, strict=True))

    def begin_phase(self, model: Any, dataset: CoarseFineDataset, phase: str) -> None:
        gates = self.recipe.gates
        if phase == self.first_gated_phase():
            if gates.begin == "open":
                open_gates(model)
            elif gates.begin == "calibrated":
                calibrate(model, dataset, self._fractions(), "both")

    def begin_epoch(self, model: Any, dataset: CoarseFineDataset, phase: str, epoch: int) -> None:
        if phase != "ungated":
            freeze_gates(model, phase == "settled")
            gates = self.recipe.gates
            if phase == "settled" and gates.recentre:
                recentre(model, dataset, self._fractions())
            set_slope(model, gates.slope + gates.slope_step * (epoch - self.recipe.train.ungated_epochs))
        self.hold_gates(model, phase)

    def loss(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        gates = self.recipe.gates
        if phase == "gated":
            self.policy(model).begin_step(model, self.progress)
        scores: dict[str, Tensor] = {}
        taken: dict[str, Tensor] = {}
        forced = self.policy(model).ungated(model, images) if phase == "ungated" else None
        with GateRecorder(model) as recorder:
            outputs = model(images, forced_gates=forced)
        loss = torch.zeros((), device=images.device)
        facts: dict[str, float] = {}
        for name, logits, target in zip(BRANCHES, outputs, gates.target, strict=True):
            entropy = F.cross_entropy(logits, labels[name])
            facts |= {f"{name}/loss": entropy.item(), f"{name}/accuracy": accuracy(logits, labels[name])}
            loss = loss + entropy
            if phase != "ungated":
                facts[f"{name}/skipped"] = 1 - model.last_gates[name].float().mean().item()
            if phase == "gated":
                taken[name] = torch.stack(recorder.multipliers[name], 1)
                multipliers = gather_rows(taken[name])
                own_logits = torch.stack(recorder.logits[name], 1)
                scores[name] = own_logits.sigmoid()
                gate_logits = gather_rows(own_logits)
                loss = loss + self.gate_loss(gate_logits, multipliers, target)
                loss = loss + self.path_loss(logits, labels[name], multipliers)
                values = multipliers.detach()
                facts[f"{name}/undecided"] = ((values > 0) & (values < 1)).float().mean().item()
        if phase == "gated":
            served = {name: (logits, labels[name]) for name, logits in zip(BRANCHES, outputs, strict=True)}
            terms, more = self.policy(model).loss(scores, taken, served, images, self.progress)
            loss, facts = loss + terms, facts | more
        return loss, facts

    def gate_loss(self, gate_logits: Tensor, multipliers: Tensor, target: float) -> Tensor:
        """The terms on the gates alone, of a branch: logits and multipliers [B, L] of the whole batch."""
        gates, loss = self.recipe.gates, torch.zeros((), device=multipliers.device)
        if gates.auxiliary:
            loss = loss + gates.auxiliary * auxiliary_loss(gate_logits, multipliers)
        if gates.sparsity:
            loss = loss + gates.sparsity * sparsity_loss(multipliers, target)
        return loss

    def path_loss(self, logits: Tensor, labels: Tensor, multipliers: Tensor) -> Tensor:
        """A term on the paths that images take, given their logits and labels; none here."""
        return torch.zeros((), device=logits.device)
