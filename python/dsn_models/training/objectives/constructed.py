"""Networks of other people's that were made to skip: cross-entropy, and the terms of ``[policy]``."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...data import CoarseFineDataset
from ..evaluation import evaluate
from ..policy import Policy
from .base import GATED_PHASES, Phase, accuracy
from .single_task import SingleTaskObjective

_TRIED = 500  # training images that the network is tried on as it was given


class ConstructedObjective(SingleTaskObjective):
    """Gates and weights learn together, the gates from open; before that, and after it, phases as of a SkipNet.

    The network that was given, before any step, is the teacher of ``policy.distillation`` and is evaluated beside the
    result.
    """

    tables: ClassVar[tuple[str, ...]] = ("gating", "policy")
    phase_keys: ClassVar[tuple[str, ...]] = GATED_PHASES
    gate_lr: ClassVar[float] = 2.0  # since gates begin with nothing, and weights are trained
    resumes_within_epochs: ClassVar[bool] = True

    @torch.no_grad()
    def check(self, model: Any, dataset: CoarseFineDataset) -> None:
        """As of every family; notes how many training images the network knows already, if it knows their classes."""
        super().check(model, dataset)
        self.given: nn.Module = model.dense_equivalent().eval().requires_grad_(False)
        self._policy = Policy(self.recipe, model, self.given if self.recipe.policy.distillation else None)
        if model.fresh_classifier:
            return
        count = min(_TRIED, len(dataset))
        images, *labels = dataset.batch(torch.arange(count) * len(dataset) // count)
        right = accuracy(self.given(images), dict(zip(("coarse", "fine"), labels, strict=True))[self.recipe.task])
        self.notes.append(
            f"as it was given the network is right for {100 * right:.1f} % of {count} training images; if that is few, "
            "its images were normalised, or its classes numbered, in another way (--mean and --std set the former)"
        )

    def phases(self) -> list[Phase]:
        return self.gated_phases()

    def begin_epoch(self, model: Any, dataset: CoarseFineDataset, phase: str, epoch: int) -> None:
        model.learn_gates(phase == "gated")
        self.hold_gates(model, phase)

    def loss(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        policy = self.policy(model)
        if phase == "ungated":
            return self.cross_entropy(model(images, forced_gates=policy.ungated(model, images)), labels)
        policy.begin_step(model, self.progress)
        logits = model(images)
        loss, facts = self.cross_entropy(logits, labels)
        served = {model.name: (logits, labels[self.recipe.task])}
        facts[f"{model.name}/skipped"] = 1 - model.last_gates[model.name].float().mean().item()
        if phase == "settled":
            return loss, facts
        terms, more = policy.loss(model.scores, model.gates, served, images, self.progress)
        return loss + terms, facts | more

    def evaluate(self, model: Any, dataset: CoarseFineDataset) -> dict[str, Any]:
        """As of one task, with ``macs`` (of those of the network without gates) and, under ``given``, the accuracy of
        the network before it was trained to skip, where it knew the classes."""
        result = super().evaluate(model, dataset)
        task = self.recipe.task
        ran = {model.name: torch.tensor(result[task]["ran"], dtype=torch.float64)}
        result[task]["macs"] = (model.gate_macs.executed(ran) / model.gate_macs.dense).item()
        if not model.fresh_classifier:
            result["given"] = {task: evaluate(self.given, dataset, task=task)[task]}
        return result
