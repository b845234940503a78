"""GaterNet: cross-entropy and the sparsity of the mask. Sections 3.2.2, 3.3 and appendix B of the paper."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...checkpoints import load
from ...data import CoarseFineDataset
from ...errors import UserError
from ...gaternet import FILTERS, GaterNet
from ..calibration import calibrate
from .base import GATED_PHASES, Phase, copy_weights
from .single_task import SingleTaskObjective


class GaterNetObjective(SingleTaskObjective):
    """Phases "joint" (backbone and gater learn) and, as our options, "ungated" before it (every filter runs) and
    "settled" after it (gater frozen, gates as in inference).

    The loss is ``cross-entropy + sparsity mean(|G|_1) / c``, G [B, c] SemHash's gates of the training forward pass, the
    means over the batch, and the terms of ``[policy]``, to which a filter's probability is sigmoid(g' - t). Gate
    dropout rises linearly with the epochs, from 0 in the first to ``dropout`` in the last.

    The paper trains backbone and gater on the task beforehand. ``init``: a GaterNet of the recipe's configuration, or a
    trained backbone; ``gater.init``: a trained network like the gater. Without the latter, a backbone that has the
    gater's layers initialises those too; else the gater begins at random.
    """

    tables = ("gater", "policy")
    phase_keys = GATED_PHASES

    def check(self, model: nn.Module, dataset: CoarseFineDataset) -> None:
        super().check(model, dataset)
        if self.recipe.gater.dropout and self.recipe.train.epochs is None:
            raise UserError(f"recipe {self.recipe.name}: gater.dropout rises by epochs; set train.epochs")

    def initialise(self, model: Any) -> None:
        super().initialise(model)
        if self.recipe.gater.init is not None:
            source, weights = f"gater.init {self.recipe.gater.init}", load(self.recipe.gater.init).state_dict()
            copy_weights(model.gater.features, _like(model.gater.features, weights, source), source)
        self.policy(model)  # a teacher that does not fit is refused before the first step

    def start_from(self, model: Any, start: Any) -> None:
        if isinstance(start, GaterNet):
            super().start_from(model, start)
            return
        source, weights = f"init {self.recipe.init}", start.state_dict()
        _like(model.backbone, weights, source)
        copy_weights(model.backbone, weights, source)
        features = {name: tensor.shape for name, tensor in model.gater.features.state_dict().items()}
        if all(name in weights and weights[name].shape == shape for name, shape in features.items()):
            copy_weights(model.gater.features, {name: weights[name] for name in features}, source)

    def phases(self) -> list[Phase]:
        return self.gated_phases("joint")

    def begin_phase(self, model: Any, dataset: CoarseFineDataset, phase: str) -> None:
        if phase == "joint" and self.recipe.gater.begin == "calibrated":
            calibrate(model, dataset, {FILTERS: 1 - self.recipe.gater.off}, self.recipe.task)

    def begin_epoch(self, model: Any, dataset: CoarseFineDataset, phase: str, epoch: int) -> None:
        model.gater.requires_grad_(phase == "joint")
        self.hold_gates(model, phase)
        model.gate_dropout = self.recipe.gater.dropout * epoch / max(self.recipe.train.length - 1, 1)

    def loss(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        if phase == "ungated":
            forced = self.policy(model).ungated(model, images)
            return self.cross_entropy(model(images, forced_gates=forced), labels)
        if phase == "joint":
            self.policy(model).begin_step(model, self.progress)
        seen: list[tuple[Tensor, Tensor]] = []
        handle = model.gate.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
        try:
            logits = model(images)
        finally:
            handle.remove()
        loss, facts = self.cross_entropy(logits, labels)
        if phase == "joint":
            scores, gates = seen[0]
            loss = loss + self.recipe.gater.sparsity * gates.mean()
            served = {FILTERS: (logits, labels[self.recipe.task])}
            terms, more = self.policy(model).loss(
                {FILTERS: scores.sigmoid()}, {FILTERS: gates}, served, images, self.progress
            )
            loss, facts = loss + terms, facts | more
            facts["gates/on"] = gates.mean().item()
        facts["filters/skipped"] = 1 - model.last_gates[FILTERS].float().mean().item()
        return loss, facts


def _like(model: nn.Module, weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights that ``model`` has.

    Raises:
        UserError: one is missing.
    """
    names = list(model.state_dict())
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f"{source} has no tensor {missing[0]}; expected a network like the recipe's model")
    return {name: weights[name] for name in names}
