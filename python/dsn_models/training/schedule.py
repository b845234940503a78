"""Optimiser and learning rate of a run."""

from __future__ import annotations

import math
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
    optimiser: optim.Optimizer, section: OptimiserSection, span: Span, steps_per_epoch: int, done: int = 0
) -> optim.lr_scheduler.LambdaLR:
    """The schedule of one phase, of which ``done`` steps are done; sets the optimiser's learning rates to what they are
    then, each times its group's ``lr_factor``."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] = span.phase.lr * group.get("lr_factor", 1.0)
    unit = steps_per_epoch if section.epochs else 1

    def factor(step: int) -> float:
        """Of the phase's learning rate, ``step`` counted from its start."""
        if span.first + step < section.warmup:
            if section.warmup_lr is not None:
                return section.warmup_lr / span.phase.lr
            return (span.first + step + 1) / section.warmup
        if section.schedule == "cosine":
            return (1 + math.cos(math.pi * step / (span.last - span.first))) / 2
        return section.gamma ** sum(step >= unit * milestone for milestone in section.milestones)

    return optim.lr_scheduler.LambdaLR(optimiser, factor, done - 1)
