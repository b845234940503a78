"""Recipes: small TOML files that say what to train, on what, and how."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSection(_Section):
    """What to train on; see ``dsn_models.data.open_dataset``."""

    kind: str
    train_images: int | None = Field(None, ge=1)
    test_images: int | None = Field(None, ge=1)
    options: dict[str, Any] = {}


class OptimiserSection(_Section):
    """SGD with Nesterov momentum, no dampening; the learning rate falls along a cosine within each phase.

    The phases: ``ungated_epochs`` run every layer; then the gates learn; in the last ``settled_epochs`` they are frozen
    and decide as in inference, and the other weights adapt to that.
    """

    epochs: int = Field(gt=0)
    ungated_epochs: int = Field(0, ge=0)
    settled_epochs: int = Field(0, ge=0)
    batch: int = Field(64, gt=1)
    lr: float = Field(0.1, gt=0)
    gated_lr: float | None = Field(None, gt=0)
    settled_lr: float | None = Field(None, gt=0)
    momentum: float = Field(0.9, gt=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    clip: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _phases_fit(self) -> OptimiserSection:
        if self.ungated_epochs + self.settled_epochs > self.epochs:
            phases = f"ungated_epochs {self.ungated_epochs} and settled_epochs {self.settled_epochs}"
            raise ValueError(f"{phases} are more than the {self.epochs} epochs")
        return self


class GateSection(_Section):
    """Gates of a dual skipping network. See ``dsn_models.training.losses`` for the terms.

    begin: "open", the gated phase begins with every gate at score 1; "calibrated", with the least needed layers half
        open (see ``dsn_models.training.calibration``); "kept", with the gates as they are.
    slope: slope k of the first gated epoch.
    slope_step: added to k after every gated epoch.
    auxiliary: weight of the loss on gates that are all 0 or all 1 over a batch.
    sparsity: weight of the loss on branches that run more than their target; 0 (off) in the paper.
    target: (coarse, fine) fraction of layers that may run without that loss, and that calibrated gates begin with.
    """

    begin: Literal["open", "calibrated", "kept"] = "open"
    slope: float = Field(1.0, gt=0)
    slope_step: float = Field(1.0, ge=0)
    auxiliary: float = Field(0.01, ge=0)
    sparsity: float = Field(0.0, ge=0)
    target: tuple[float, float] = (1.0, 1.0)


class Recipe(_Section):
    """One training run.

    ``task`` is "both" for dual skipping networks, "coarse" or "fine" for baselines. ``init`` is a checkpoint whose
    weights the run begins with, a path from the working directory.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    model: str
    task: Literal["both", "coarse", "fine"] = "both"
    seed: int = Field(0, ge=0)
    init: str | None = None
    options: dict[str, Any] = {}
    data: DataSection
    train: OptimiserSection
    gates: GateSection = Field(default_factory=lambda: GateSection.model_validate({}))


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
        raise UserError(f"no recipe {str(source)!r}; expected a TOML file or one of {', '.join(recipe_names())}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is no TOML: {error}") from error
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "recipe"
        what = "unknown key" if first["type"] == "extra_forbidden" else f"{first['msg'].lower()}, key"
        raise UserError(f"recipe {path}: {what} {key!r} (given {first['input']!r}); see docs/training.md") from error
