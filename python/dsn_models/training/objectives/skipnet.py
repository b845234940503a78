"""SkipNet: supervised pre-training (SP), then hybrid reinforcement learning (HRL). Section 2 of the paper."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...computation import computation
from ...data import CoarseFineDataset
from ...distributed import gather_rows, own_rows, world_size
from ...errors import UserError
from ...resnet import ResNet
from ...skipnet import UNITS, Decide, SkipNet, resolve_thresholds
from ..calibration import calibrate, recentre
from .base import GATED_PHASES, Phase
from .single_task import SingleTaskObjective


class SkipNetObjective(SingleTaskObjective):
    """The stage that the recipe's ``[skipping]`` names and, as our options, phases before and after it: "ungated", in
    which every unit runs, and "settled", in which the gates are frozen and the other weights adapt to them.

    - "supervised" (section 2.2): gates decide by their threshold, gradients pass straight through to their scores. The
      loss is the cross-entropy, and, as our options, ``penalty max(0, mean gate - target)`` and ``[policy]``'s terms.
    - "reinforce" (section 2.1): gates are sampled, g_i ~ Bernoulli(score_i). The loss is
      ``CE - mean(sum_i log P(g_i) R_i)`` with equation 5's reward ``R_i = alpha / N sum_{j >= i} (1 - g_j) - CE`` of
      each image, constant under the gradient; N gates. Batch norms keep to their running statistics, so that they do
      not drift while gates are sampled.

    ``init``: a SkipNet of the recipe's configuration, or, for a supervised run, its residual network.
    """

    tables = ("skipping", "policy")
    phase_keys = GATED_PHASES

    def initialise(self, model: Any) -> None:
        if self.recipe.skipping.stage == "reinforce" and self.recipe.init is None:
            raise UserError(f"recipe {self.recipe.name}: {_ORDER}; none is given")
        if self.recipe.skipping.stage == "reinforce" and self.recipe.policy.model_dump(exclude_defaults=True):
            raise UserError(f"recipe {self.recipe.name}: [policy] is for stage 'supervised'; 'reinforce' has a reward")
        super().initialise(model)
        self.policy(model)  # a teacher that does not fit is refused before the first step

    def start_from(self, model: Any, start: Any) -> None:
        if self.recipe.skipping.stage == "reinforce" and not isinstance(start, SkipNet):
            raise UserError(f"recipe {self.recipe.name}: {_ORDER}; init is a {type(start).__name__}")
        if isinstance(start, ResNet):
            model.load_backbone(start)
        else:
            super().start_from(model, start)

    def phases(self) -> list[Phase]:
        return self.gated_phases()

    def begin_epoch(self, model: Any, dataset: CoarseFineDataset, phase: str, epoch: int) -> None:
        model.learn_gates(phase == "gated")
        if phase == "settled" and self.recipe.skipping.recentre:
            recentre(model, dataset, {UNITS: self.recipe.skipping.target})
        self.hold_gates(model, phase)

    def begin_phase(self, model: Any, dataset: CoarseFineDataset, phase: str) -> None:
        section = self.recipe.skipping
        if section.stage == "reinforce" or section.begin == "kept" or phase != self.first_gated_phase():
            return
        model.open_gates()
        if section.begin == "calibrated":
            calibrate(model, dataset, {UNITS: section.target}, self.recipe.task)

    def loss(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        if phase == "ungated":
            forced = self.policy(model).ungated(model, images)
            return self.cross_entropy(model(images, forced_gates=forced), labels)
        if phase == "settled" or self.recipe.skipping.stage == "supervised":
            loss, facts = self._supervised(model, images, labels, phase)
        else:
            loss, facts = self._reinforce(model, images, labels)
        facts["units/skipped"] = 1 - model.last_gates[UNITS].float().mean().item()
        return loss, facts

    def _supervised(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        if phase == "gated":
            self.policy(model).begin_step(model, self.progress)
        gates = _Recorder(map(model.decision, resolve_thresholds(None, model.config)))
        logits = model(images, decide=gates)
        loss, facts = self.cross_entropy(logits, labels)
        section = self.recipe.skipping
        if phase == "gated":
            scores, taken = {UNITS: torch.stack(gates.scores, 1)}, {UNITS: torch.stack(gates.values, 1)}
            served = {UNITS: (logits, labels[self.recipe.task])}
            terms, more = self.policy(model).loss(scores, taken, served, images, self.progress)
            loss, facts = loss + terms, facts | more
            if section.penalty:
                mean = gather_rows(torch.stack(gates.values, 1)).mean()
                loss = loss + section.penalty * (mean - section.target).clamp(min=0)
        elif section.recentre:
            self._hold(model)
        return loss, facts

    @torch.no_grad()
    def _hold(self, model: Any) -> None:
        """Shifts the frozen gates a little towards the target, since the features before them drift within an epoch."""
        excess = gather_rows(model.last_gates[UNITS].float()).mean() - self.recipe.skipping.target
        for linear in model.last_linears():
            linear.bias[-1] -= _HOLD * excess

    def _reinforce(self, model: Any, images: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        samples = _Recorder(repeat(sample))
        logits = model(images, decide=samples)
        loss, facts = self.cross_entropy(logits, labels)
        gates, scores = torch.stack(samples.values, 1), torch.stack(samples.scores, 1)
        entropy = F.cross_entropy(logits.detach(), labels[self.recipe.task], reduction="none")
        reward = gate_rewards(gates, entropy, self.recipe.skipping.alpha)
        facts["reward"] = reward[:, 0].mean().item()
        if self.recipe.skipping.baseline:
            reward = reward - gather_rows(reward).mean(0)
        log_probability = torch.where(gates != 0, scores, 1 - scores).clamp(min=1e-6).log()
        return loss - (log_probability * reward).sum(1).mean(), facts

    def evaluate(self, model: Any, dataset: CoarseFineDataset) -> dict[str, Any]:
        """As of one task, with ``units`` (fraction of all units that ran) and ``macs_saved`` beside ``skipped``."""
        result = super().evaluate(model, dataset)
        task = result[self.recipe.task]
        cost = computation(model, torch.tensor(task["ran"]))
        task |= {"units": cost.units.item(), "macs": cost.macs.item(), "macs_saved": cost.saved.item()}
        return result


_HOLD = 0.5  # what a settled gate's logit is shifted by, at each step, per unit that too large a fraction is open

_ORDER = (
    "reinforcement learning (stage 'reinforce') starts from a SkipNet trained by stage 'supervised'; set init to it"
)


class _Recorder:
    """Decides as ``decisions``, one for each gate, and keeps scores and values, [B] each, with their gradients."""

    def __init__(self, decisions: Iterable[Decide]) -> None:
        self.decisions = iter(decisions)
        self.scores: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, score: Tensor) -> Tensor:
        self.scores.append(score)
        self.values.append(next(self.decisions)(score))
        return self.values[-1]


def sample(score: Tensor) -> Tensor:  # [B] -> [B]
    """1 with probability ``score``, else 0; drawn alike whether one process holds the batch or several share it."""
    draw = own_rows(torch.rand(len(score) * world_size()))
    return (draw.to(score.device) < score).to(score.dtype)


def gate_rewards(gates: Tensor, entropy: Tensor, alpha: float) -> Tensor:  # [B, N], [B] -> [B, N]
    """Equation 5: ``R_i = alpha / N sum_{j >= i} (1 - g_j) - entropy``, every unit's cost being 1.

    The paper's sum runs over the gates that are still to come, its likelihood term is minus the cross-entropy.
    """
    skipped = 1 - gates
    to_come = skipped.flip(1).cumsum(1).flip(1)
    return alpha / gates.shape[1] * to_come - entropy[:, None]
