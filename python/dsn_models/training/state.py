"""The complete state of a run, kept after every epoch, from which it goes on to the same numbers."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints import write_atomically
from ..errors import UserError
from .recipe import Recipe


@dataclass
class RunState:
    """Progress of a run.

    Attributes:
        epoch, step: finished epochs and optimiser steps.
        seconds: of training.
        history: what was measured, per epoch.
        position: steps of the epoch in which the run was interrupted, if it is to go on within that.
        totals: what they measured.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    position: int = 0
    totals: dict[str, float] = field(default_factory=dict)


def save_state(path: Path, recipe: Recipe, model: nn.Module, optimiser: torch.optim.Optimizer, state: RunState) -> None:
    """Writes model, optimiser, random state and progress, atomically."""
    buffer = io.BytesIO()
    torch.save(
        {
            "recipe": recipe.model_dump_json(),
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "rng": torch.get_rng_state(),
            "progress": vars(state),
        },
        buffer,
    )
    write_atomically(path, buffer.getvalue())


def restore_state(path: Path, recipe: Recipe, model: nn.Module, optimiser: torch.optim.Optimizer) -> RunState:
    """Puts a saved state back into ``model`` and ``optimiser`` and returns the progress.

    Raises:
        UserError: the file is damaged, or belongs to another recipe.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["progress"].pop("schedule", None)  # earlier versions kept what follows from the step
        saved = Recipe.model_validate_json(content["recipe"])
        state = RunState(**content["progress"])
    except Exception as error:  # of damaged bytes torch's unpickler may raise anything
        raise UserError(f"{path} is no training state, or cut short; remove it to start anew") from error
    if saved != recipe:
        raise UserError(f"{path} belongs to another recipe or an edited one; choose another output folder or remove it")
    model.load_state_dict(content["model"])
    optimiser.load_state_dict(content["optimiser"])
    torch.set_rng_state(content["rng"])
    return state
