"""Optimiser and learning rate of a run."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn, optim

from .objectives.base import Objective, Phase
from .recipe import OptimiserSection


class Span(NamedTuple):
    """A phase in optimiser steps: it runs from step ``first`` until before step ``last``."""

    phase: Phase
    first: int
    last: int


def spans(objective: Objective, steps_per_epoch: int) -> list[Span]:
    """The objective's phases in steps."""
    unit = steps_per_epoch if objective.recipe.train.epochs else 1
    found: list[Span] = []
    for phase in objective.phases():
        first = found[-1].last if found else 0
        found.append(Span(phase, first, first + phase.length * unit))
    return found


def make_optimiser(model: nn.Module, objective: Objective) -> optim.SGD:
    """SGD as the recipe says, over the objective's parameter groups."""
    section = objective.recipe.train
    groups = objective.parameter_groups(model)
    return optim.SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov)


def make_scheduler(
    optimiser: optim.Optimizer, section: OptimiserSection, span: Span, steps_per_epoch: int
) -> optim.lr_scheduler.LRScheduler:
    """The schedule of one phase, from its first step; sets the optimiser's learning rates to the phase's, each times
    its group's ``lr_factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] = span.phase.lr * group.get("lr_factor", 1.0)
    if section.schedule == "cosine":
        return optim.lr_scheduler.CosineAnnealingLR(optimiser, span.last - span.first)
    unit = steps_per_epoch if section.epochs else 1
    return optim.lr_scheduler.MultiStepLR(optimiser, [unit * m for m in section.milestones], section.gamma)
