"""The interface between the training loop, which knows no family, and the families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...checkpoints import load, read_metadata, with_classes
from ...data import CoarseFineDataset
from ...errors import UserError
from ..evaluation import evaluate
from ..policy import Policy
from ..recipe import Recipe


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a learning-rate schedule of its own.

    Attributes:
        name: what an objective tells its phases by.
        length: in the recipe's unit, epochs or iterations.
        lr: learning rate at its beginning.
    """

    name: str
    length: int
    lr: float


class Objective(ABC):
    """What training a family minimises. The loop calls, in this order:

    ``check``, ``initialise`` once; ``begin_phase`` at the start of each phase of ``phases()``; ``begin_epoch`` at the
    start of each epoch; ``loss`` at each step; ``evaluate`` at the end. An interrupted run calls ``begin_epoch`` again,
    not ``begin_phase``: what a phase began with is in the model's state.

    With several processes (``dsn_models.distributed``), ``loss`` sees the process's own images. It returns the mean
    over them of a loss per image, or a function of values gathered from all processes, or a sum of such.
    """

    #: The recipe's tables that this family reads.
    tables: ClassVar[tuple[str, ...]] = ()
    #: Whether ``begin_epoch`` changes nothing, so that an interrupted run may go on within an epoch.
    resumes_within_epochs: ClassVar[bool] = False
    #: What of ``[train]`` says how long phases are and how fast they learn, beyond length and rate of the whole.
    phase_keys: ClassVar[tuple[str, ...]] = ()
    #: Learning rate of the gates, as a multiple of that of the other weights, where the recipe gives none.
    gate_lr: ClassVar[float] = 1.0
    #: The fraction of the current phase's steps that are done; the loop sets it before each step.
    progress: float = 0.0

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        #: One line each on how the run begins, which the loop prints.
        self.notes: list[str] = []
        self._policy: Policy | None = None

    def policy(self, model: Any) -> Policy:
        """The terms of the recipe's ``[policy]``, of a family that reads it; made once."""
        if self._policy is None:
            self._policy = Policy(self.recipe, model)
        return self._policy

    @abstractmethod
    def class_counts(self, model: Any) -> dict[str, int]:
        """The number of classes of each task that the model has, by "coarse" or "fine".

        Raises:
            UserError: the recipe's ``task`` is not for this family.
        """

    @abstractmethod
    def loss(
        self, model: Any, images: Tensor, labels: dict[str, Tensor], phase: str
    ) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise and facts to log, of one batch.

        Args:
            model: in training mode, not wrapped.
            images: float32 [B, C, H, W].
            labels: ``{"coarse": int64 [B], "fine": int64 [B]}``.
            phase: name of the current phase.
        """

    def check(self, model: nn.Module, dataset: CoarseFineDataset) -> None:
        """Refuses data that do not fit the model; notes a normalisation that ``init`` was not trained with.

        Raises:
            UserError: a class count differs, or the recipe's ``task`` is not for this family.
        """
        available = {"coarse": dataset.coarse_classes, "fine": dataset.fine_classes}
        for name, count in self.class_counts(model).items():
            if count != available[name]:
                raise UserError(
                    f"recipe {self.recipe.name}: the model has {count} {name} classes, the data {available[name]}; "
                    "set options.classes"
                )
        before = {} if self.recipe.init is None else read_metadata(self.recipe.init).get("data", {})
        for key, values in dataset.description().items():
            if key in ("mean", "std") and before.get(key, values) != values:
                self.notes.append(
                    f"init {self.recipe.init} was trained on images of {key} {before[key]}, the recipe's data has "
                    f"{values}; data.options.{key} sets it"
                )

    def initialise(self, model: Any) -> None:
        """Puts the weights of the recipe's ``init`` into ``model``; its classifier is fresh if it is of other classes.

        Raises:
            UserError: the checkpoint cannot be read or does not fit.
        """
        if self.recipe.init is not None:
            self.start_from(model, self._beginning(model))

    def _beginning(self, model: Any) -> Any:
        """The network of the recipe's ``init``, with the class count of ``model``."""
        start: Any = load(str(self.recipe.init))
        given, wanted = start.config.classes, model.config.classes
        if given == wanted or isinstance(given, tuple) != isinstance(wanted, tuple):
            return start
        start, fresh = with_classes(start, wanted, self.recipe.seed)
        self.notes.append(
            f"init {self.recipe.init} has {given} classes, the recipe {wanted}: {', '.join(fresh)} begin anew"
        )
        return start

    def start_from(self, model: Any, start: Any) -> None:
        """Puts the weights of ``start``, a loaded checkpoint, into ``model``. By default both have the same tensors."""
        given, wanted = start.config.classes, model.config.classes
        if given != wanted:
            raise UserError(
                f"init {self.recipe.init} has {given} classes, the recipe's model {wanted}; "
                "set options.classes, or take a checkpoint with as many"
            )
        weights = start.state_dict()
        for name in model.state_dict():
            if name not in weights:
                raise UserError(f"init {self.recipe.init} ({start.config.name}) has no tensor {name}")
        copy_weights(model, weights, f"init {self.recipe.init} ({start.config.name})")

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """SGD's groups: the recipe's weight decay for weights, and for biases and norms where it says "all".

        Where gates learn at another rate than the other weights, each group once more for them.
        """
        section = self.recipe.train
        decayed = [p for p in model.parameters() if p.dim() > 1 or section.decay == "all"]
        others = [p for p in model.parameters() if not (p.dim() > 1 or section.decay == "all")]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": section.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        factor = self.recipe.policy.gate_lr or self.gate_lr
        if factor == 1:
            return groups
        network: Any = model
        own = {id(parameter) for parameter in network.gate_parameters()}
        split: list[dict[str, Any]] = []
        for group in groups:
            gates = [parameter for parameter in group["params"] if id(parameter) in own]
            weights = [parameter for parameter in group["params"] if id(parameter) not in own]
            split += [{**group, "params": weights}, {**group, "params": gates, "lr_factor": factor}]
        return [group for group in split if group["params"]]

    def phases(self) -> list[Phase]:
        """The phases in order; their lengths sum to the recipe's. By default one."""
        return [Phase("train", self.recipe.train.length, self.recipe.train.lr)]

    def gated_phases(self, learning: str = "gated") -> list[Phase]:
        """Those of a gated network by the recipe's ``[train]``: "ungated", ``learning``, "settled"; none is empty.

        Gates that are held at a pattern are settled from the beginning.
        """
        train = self.recipe.train
        gated_lr = train.gated_lr or train.lr
        settled = train.settled_epochs
        if self.recipe.policy.pattern is not None:
            settled = train.length - train.ungated_epochs
        phases = [
            Phase("ungated", train.ungated_epochs, train.lr),
            Phase(learning, train.length - train.ungated_epochs - settled, gated_lr),
            Phase("settled", settled, train.settled_lr or gated_lr),
        ]
        return [phase for phase in phases if phase.length]

    def hold_gates(self, model: Any, phase: str) -> None:
        """Before an epoch: holds the gates at the recipe's pattern, if it has one, in a phase in which they decide."""
        pattern = self.policy(model).pattern
        if pattern is not None and phase != "ungated":
            model.hold_gates(pattern)

    def first_gated_phase(self) -> str | None:
        """The name of the first phase in which gates decide; None if there is none."""
        return next((phase.name for phase in self.phases() if phase.name != "ungated"), None)

    def begin_phase(self, model: Any, dataset: CoarseFineDataset, phase: str) -> None:  # noqa: B027 (need not do anything)
        """Called once, before the first epoch of a phase."""

    def begin_epoch(self, model: Any, dataset: CoarseFineDataset, phase: str, epoch: int) -> None:  # noqa: B027
        """Called before each epoch, ``epoch`` counted from 0 over all phases."""

    def evaluate(self, model: nn.Module, dataset: CoarseFineDataset) -> dict[str, Any]:
        """The test results that a checkpoint keeps; ``model`` is in ``eval()``."""
        return evaluate(model, dataset, task=self.recipe.task)


#: The ``phase_keys`` of a gated network.
GATED_PHASES = ("ungated_epochs", "gated_lr", "settled_epochs", "settled_lr")


@torch.no_grad()
def copy_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copies ``weights`` into the parameters and buffers of the same names; ``model`` may have more than are given.

    Raises:
        UserError: a name is not in ``model``, or its shape differs; ``source`` says whose it is.
    """
    own = model.state_dict()
    for name, tensor in weights.items():
        if name not in own:
            raise UserError(f"{source} has a tensor {name}, for which the model has no place")
        if own[name].shape != tensor.shape:
            raise UserError(f"{source}: tensor {name} is {[*tensor.shape]}, the model's {[*own[name].shape]}")
        own[name].copy_(tensor)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The fraction of images whose largest logit is their label's. [B, classes] and [B]."""
    return (logits.argmax(1) == labels).float().mean().item()
