"""Recipes: small TOML files that say what to train, on what, and how."""

from __future__ import annotations

import reprlib
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .. import zoo
from ..errors import UserError, expected
from ..gated import UnitGateKind
from ..selection import Compute

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class Section(BaseModel):
    """A table of a recipe; an unknown key is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """What to train on; see ``dsn_models.data.open_dataset``.

    validation: so many training images are held out, and the run is tested on them, not on the test images.
    """

    kind: str
    train_images: int | None = Field(None, ge=1)
    test_images: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    options: dict[str, Any] = {}


class OptimiserSection(Section):
    """SGD with momentum, without dampening, and the schedule of its learning rate.

    Training lasts ``epochs`` (passes over the data) or ``iterations`` (optimiser steps); the unit of ``milestones`` is
    the same. Within each phase the rate falls along a cosine to 0 (``schedule = "cosine"``), or is multiplied by
    ``gamma`` at each milestone, counted from the start of the phase (``"step"``).

    The phases of gated networks: ``ungated_epochs`` run every layer, unit or filter; then the gates learn; in the last
    ``settled_epochs`` they are frozen and decide as in inference, and the other weights adapt to that.

    ``warmup``: in so many first steps the rate is ``warmup_lr`` (SkipNet-110 and 152: 400 steps at 0.01), or rises
    evenly to ``lr`` if that is not given. The schedule goes on meanwhile.

    ``curve``: after each epoch the network is tested, for training curves; facts of the checkpoint keep what was found.

    ``compute``: layers and units are computed for all images and masked, as in the papers ("masked"), or for the images
    that run them ("selected"); see ``dsn_models.selection``.
    """

    epochs: int | None = Field(None, gt=0)
    iterations: int | None = Field(None, gt=0)
    ungated_epochs: int = Field(0, ge=0)
    settled_epochs: int = Field(0, ge=0)
    batch: int = Field(64, gt=1, le=1_000_000)
    lr: float = Field(0.1, gt=0)
    gated_lr: float | None = Field(None, gt=0)
    settled_lr: float | None = Field(None, gt=0)
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = Field(0.1, gt=0, lt=1)
    warmup: int = Field(0, ge=0)
    warmup_lr: float | None = Field(None, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(1e-4, ge=0)
    decay: Literal["weights", "all"] = "weights"
    clip: float = Field(1.0, ge=0)
    curve: bool = False
    compute: Compute = "masked"

    @property
    def length(self) -> int:
        """The whole training in the recipe's unit: epochs, or iterations."""
        return self.epochs or self.iterations or 0

    @model_validator(mode="after")
    def _fits(self) -> OptimiserSection:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("expected epochs or iterations, one of both")
        if self.ungated_epochs + self.settled_epochs > self.length:
            phases = f"ungated_epochs {self.ungated_epochs} and settled_epochs {self.settled_epochs}"
            raise ValueError(f"{phases} are more than the {self.epochs} epochs")
        if self.iterations is not None and self.ungated_epochs + self.settled_epochs:
            raise ValueError("ungated_epochs and settled_epochs need a training counted in epochs")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("milestones belong to schedule 'step', which needs at least one")
        if list(self.milestones) != sorted(set(self.milestones)) or any(m < 1 for m in self.milestones):
            raise ValueError(f"milestones are {list(self.milestones)}; expected rising positive numbers")
        if self.warmup_lr is not None and not self.warmup:
            raise ValueError("warmup_lr needs a number of steps, warmup")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class GateSection(Section):
    """Gates of a dual skipping network. See ``dsn_models.training.losses`` for the terms.

    begin: "open", the gated phase begins with every gate at score 1; "calibrated", with the least needed layers half
        open (see ``dsn_models.training.calibration``); "kept", with the gates as they are.
    slope: slope k of the first gated epoch.
    slope_step: added to k after every gated epoch.
    auxiliary: weight of the loss on gates that are all 0 or all 1 over a batch.
    sparsity: weight of the loss on branches that run more than their target; 0 (off) in the paper.
    target: (coarse, fine) fraction of layers that may run without that loss, and that calibrated gates begin with.
    recentre: before each settled epoch, shift calibrated gates so that they are open for half of the images again.
    """

    begin: Literal["open", "calibrated", "kept"] = "open"
    slope: float = Field(1.0, gt=0)
    slope_step: float = Field(1.0, ge=0)
    auxiliary: float = Field(0.01, ge=0)
    sparsity: float = Field(0.0, ge=0)
    target: tuple[float, float] = (1.0, 1.0)
    recentre: bool = False


class LsnSection(Section):
    """The ranking loss of layer-skippable networks. See ``dsn_models.training.losses.ranking_loss``; our reading.

    ranking: its weight; 0 switches it off.
    margin: by how much larger a fraction of the layers a harder image should use.
    """

    ranking: float = Field(0.1, ge=0)
    margin: float = Field(0.05, ge=0)


class GaterSection(Section):
    """Gater of a GaterNet. See ``dsn_models.training.objectives.gaternet``.

    sparsity: weight lambda of the loss ``mean(|G|_1) / c``; open in the paper.
    dropout: rate of gate dropout in the last epoch, to which it rises from 0; 0.05 in the paper for DenseNet,
        Shake-Shake and Inception-v4.
    begin: "kept", the gates begin as the gater's random maps have it; "calibrated", with the least needed filters off.
    off: the fraction of filters that calibrated gates begin with off.
    init: a checkpoint of a trained network like the gater, for the gater's features.
    """

    sparsity: float = Field(0.1, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    begin: Literal["calibrated", "kept"] = "kept"
    off: float = Field(0.25, ge=0, lt=1)
    init: str | None = None


class SkippingSection(Section):
    """Gates of a SkipNet. See ``dsn_models.training.objectives.skipnet``.

    stage: "supervised" (SP: straight-through gates), then "reinforce" (HRL: sampled gates, from an SP checkpoint).
    begin: gates of a supervised run begin as they are ("kept"), biased towards keeping every unit ("open"), or fitted
        to the units' harm ("calibrated", see ``dsn_models.training.calibration``).
    target: fraction of the gates that are open when calibrated gates begin, and that ``penalty`` does not touch.
    penalty: weight of ``max(0, mean gate - target)`` in a supervised run; 0 (off) in the paper.
    recentre: in the settled epochs, shift the frozen gates so that ``target`` of them goes on to be open.
    alpha: weight of the reward for skipping.
    baseline: subtract the batch's mean reward of each gate, which lessens the variance; not in the paper.
    """

    stage: Literal["supervised", "reinforce"] = "supervised"
    begin: Literal["kept", "open", "calibrated"] = "kept"
    target: float = Field(1.0, gt=0, le=1)
    penalty: float = Field(0.0, ge=0)
    recentre: bool = False
    alpha: float = Field(0.1, ge=0)
    baseline: bool = False


class HaltingSection(Section):
    """Adaptive computation time. See ``dsn_models.training.objectives.adaptive_time``.

    ponder: tau, the weight of the ponder cost.
    """

    ponder: float = Field(0.01, ge=0)


class GatingSection(Section):
    """What ``dsn gate`` made of a network of the user's, whose constructor is the recipe's ``model``.

    weights: the file that they came from.
    units: names or patterns of the modules that may be skipped, or "auto".
    kind: of the gates; see :func:`dsn_models.gate`.
    """

    weights: str | None = None
    units: tuple[str, ...] = ("auto",)
    kind: UnitGateKind = "pooled"


class PolicySection(Section):
    """What makes the gates of layers and units learn for whom to open. See ``dsn_models.training.policy``; all off.

    binary: gates of dual skipping networks decide 0 or 1 in the gated phase too, as those of a SkipNet do anyway, and
        those of a GaterNet for all images, not for half of them.
    noise: scale of the noise on decisions at the start of the gated phase; 1 draws each with its probability. Of a
        GaterNet, whose noise is of scale 1 without this option, of that.
    noise_end: fraction of the phase after which there is none.
    cost: weight of ``max(0, MACs - target)^2``, MACs as a fraction of those of the network without gates.
    costs: a file of ``dsn timeline --costs``: milliseconds of each gate, which then stand for MACs in all terms.
    target: what the batch's mean MACs, or each image's, are to fall to.
    per: whose MACs: "batch", the mean, so that images may differ; or "image", each one's, the mean of the squares.
    target_end: fraction of the phase over which the target falls from 1.
    information: weight of what a gate tells of the image, which is maximised.
    classes: weight of what a gate tells of the image's class, which is maximised.
    shaping: weight of the distance between a gate's scores over a batch and a distribution with both ends.
    ranking: weight of the loss on harder images that run fewer MACs than easier ones.
    margin: how many more, as a fraction of what the task's gates decide on, a harder image is to run.
    depth: rate at which layers, units or filters are left out at random in the ungated phase.
    gate_lr: learning rate of the gates, as a multiple of that of the other weights.
    distillation: weight of the divergence from the teacher's answers.
    temperature: that both answers are softened by.
    teacher: a checkpoint; it runs without gates.
    pattern: a file of ``dsn eval --controls --json``, or of 0 and 1 by the gates' name: in place of learning, the gates
        are held at its static pattern, the same for all images, and the other weights adapt to that. What a network
        whose gates decide by image is to be compared with.
    """

    binary: bool = False
    noise: float = Field(0.0, ge=0)
    noise_end: float = Field(0.8, gt=0, le=1)
    cost: float = Field(0.0, ge=0)
    costs: str | None = None
    per: Literal["batch", "image"] = "batch"
    target: float = Field(1.0, gt=0, le=1)
    target_end: float = Field(0.4, gt=0, le=1)
    information: float = Field(0.0, ge=0)
    classes: float = Field(0.0, ge=0)
    shaping: float = Field(0.0, ge=0)
    ranking: float = Field(0.0, ge=0)
    margin: float = Field(0.05, ge=0)
    depth: float = Field(0.0, ge=0, lt=1)
    gate_lr: float | None = Field(None, gt=0)
    distillation: float = Field(0.0, ge=0)
    temperature: float = Field(2.0, gt=0)
    teacher: str | None = None
    pattern: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> PolicySection:
        if self.pattern is not None and self != PolicySection.model_construct(pattern=self.pattern):
            raise ValueError("pattern holds the gates, which then learn nothing; leave the other options out")
        if bool(self.distillation) != (self.teacher is not None):
            raise ValueError("distillation and teacher belong together")
        for key in ("target", "per", "target_end"):
            if getattr(self, key) != PolicySection.model_fields[key].default and not self.cost:
                below = "a target below 1" if key == "target" else key
                raise ValueError(f"{below} needs a weight, cost")
        return self


class Recipe(Section):
    """One training run.

    ``task`` is "both" for networks of two branches, "coarse" or "fine" for those of one task. ``init`` is a checkpoint
    whose weights the run begins with, a path from the working directory; the family says what fits it. Tables after
    ``train`` are for the families that read them.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str
    task: Literal["both", "coarse", "fine"] = "both"
    seed: int = Field(0, ge=0, lt=2**32)
    init: str | None = None
    options: dict[str, Any] = {}
    data: DataSection
    train: OptimiserSection
    gates: GateSection = Field(default_factory=lambda: GateSection.model_validate({}))
    skipping: SkippingSection = Field(default_factory=lambda: SkippingSection.model_validate({}))
    gater: GaterSection = Field(default_factory=lambda: GaterSection.model_validate({}))
    lsn: LsnSection = Field(default_factory=lambda: LsnSection.model_validate({}))
    halting: HaltingSection = Field(default_factory=lambda: HaltingSection.model_validate({}))
    gating: GatingSection = Field(default_factory=lambda: GatingSection.model_validate({}))
    policy: PolicySection = Field(default_factory=lambda: PolicySection.model_validate({}))


_COMMON = {"name", "model", "task", "seed", "init", "options", "data", "train"}
FAMILY_TABLES = tuple(name for name in Recipe.model_fields if name not in _COMMON)


def recipe_names() -> list[str]:
    """The names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(source: str | Path) -> Recipe:
    """The recipe of a TOML file, or a shipped one by name.

    Raises:
        UserError: there is no such recipe, or it has an unknown key, a missing key or a value that does not fit; the
            key is named.
    """
    path = Path(source)
    if not path.is_file():
        path = RECIPES / f"{source}.toml"
    if not path.is_file():
        raise UserError(f"no recipe {str(source)!r}; {expected(source, recipe_names(), 'a TOML file or ')}")
    try:
        content = tomllib.loads(
            path.read_text(encoding="utf-8-sig")
        )  # some editors begin a file with a byte-order mark
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"recipe {path} is no TOML: {error}") from error
    return validated(content, f"recipe {path}")


def told_task(recipe: Recipe) -> str:
    """The recipe's task; of a model of one task, where the recipe does not say which, the fine one."""
    single = not isinstance(zoo.configuration(recipe.model)[1]["classes"], tuple)
    return "fine" if single and recipe.task == "both" else recipe.task


def validated(content: dict[str, Any], whose: str) -> Recipe:
    """A recipe from its keys.

    Raises:
        UserError: a key is unknown, which is answered with the near ones, or missing, or its value does not fit.
    """
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        given = reprlib.repr(first["input"])
        if first["type"] != "extra_forbidden":
            raise UserError(
                f"{whose}: {first['msg'].lower()}, key {key!r} (given {given}); see docs/training.md"
            ) from error
        near = expected(key, _keys(Recipe))
        raise UserError(f"{whose}: unknown key {key!r} (given {given}); {near}; see docs/training.md") from error
    return recipe.model_copy(update={"task": told_task(recipe)}) if recipe.model in zoo.names() else recipe


def _keys(section: type[BaseModel], before: str = "") -> list[str]:
    """The dotted keys of a recipe."""
    found = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += _keys(kind, f"{before}{name}.")
        else:
            found.append(before + name)
    return found
