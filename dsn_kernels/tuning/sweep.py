"""Thresholds against error, layers skipped, MACs and latency."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from dsn_models import UserError

from ..measure import machine
from ..measure.records import Labelled
from .operating_point import moves_thresholds, own_thresholds
from .pick import picked
from .points import pareto, summarise
from .sweeper import Sweeper, SweepSettings

_TIMED_POINTS = 9


def sweep(
    model: nn.Module,
    name: str,
    data: Labelled,
    settings: SweepSettings,
    *,
    on_step: Callable[[str, float], None] = lambda text, fraction: None,
) -> dict[str, Any]:
    """Sweeps the gate thresholds of ``model``; figure 4 of Dual Skipping Networks, and the same over latency.

    One half of ``data``, drawn at random, is swept and picks; the other checks the pick. Latency is timed on the
    points of the Pareto front, on up to 128 batches of images each, in turns; from there ``base_ms + ms_per_mac x
    MACs`` gives that of the others.

    Args:
        model: a gated network that ``dsn_kernels.accelerate`` serves; it is not changed.
        name: what the document calls it.
        data: images and labels.
        settings: what to measure.
        on_step: told what is going on, and which part of it is done.

    Returns:
        The document: ``points``, ``front`` (indices into them), ``open`` (every gate forced open), ``latency``, and
        ``pick`` if a budget is given, with its figures on both halves.

    Raises:
        UserError: the network has no gates, its kernels do not decide them, there are too few images, or the budget
            cannot be met.
    """
    own_thresholds(model)
    if not moves_thresholds(model):
        raise UserError(
            f"torch decides the gates of {name}, between the kernels, at the threshold that it was made with; a sweep "
            "needs gates that the kernels decide"
        )
    if len(data.images) < 4 * settings.batch:
        wanted = 4 * settings.batch
        raise UserError(f"there are {len(data.images)} images; expected {wanted} or more for batch {settings.batch}")
    sweeper = Sweeper(model, data, settings, on_step)
    points = sweeper.grid()
    front = pareto(points)
    chosen = sorted({front[round(i)] for i in np.linspace(0, len(front) - 1, min(len(front), _TIMED_POINTS))})
    timed = sweeper.time([sweeper.opened, *(points[i] for i in chosen)], sweeper.pick)
    deviation = sweeper.fit(timed)
    rows = [summarise(point, sweeper.dense) for point in points]
    opened = summarise(sweeper.opened, sweeper.dense)
    for row in rows:
        row["latency_ms"] = sweeper.latency_interval(row["macs"])
    document: dict[str, Any] = {
        "schema": 1,
        "model": name,
        "images": {"pick": len(sweeper.pick.images), "check": len(sweeper.check.images)},
        "seed": settings.seed,
        "macs_dense": sweeper.dense,
        "own_thresholds": sweeper.own,
        "open": opened | {"latency_ms": sweeper.latency_interval(opened["macs"])},
        "points": rows,
        "front": front,
        "latency": {
            "batch": settings.batch,
            "timed": [{"point": i, **row} for i, row in zip([None, *chosen], timed, strict=True)],
            "base_ms": sweeper.base_ms,
            "ms_per_mac": sweeper.ms_per_mac,
            "deviation_ms": sweeper.deviation_ms,
            "largest_deviation": deviation,
        },
        "threads": torch.get_num_threads(),
        **machine.facts(),
    }
    if settings.budget is not None:
        budget = settings.budget
        if budget.relative:
            budget = dataclasses.replace(budget, own_ms=sweeper.own_ms())
        document["pick"] = picked(sweeper, points, budget)
    return document
