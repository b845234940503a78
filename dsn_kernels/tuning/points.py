"""One setting of the gate thresholds and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsn_models.intervals import mean_interval, share_interval

from ..measure.records import Record

Thresholds = dict[str, float]


@dataclass(frozen=True)
class Point:
    """Thresholds and what they did to some images.

    Attributes:
        thresholds: by branch; None where every gate was forced open.
        record: of the images.
        layers: thresholds by branch and layer, where they are not one per branch.
    """

    thresholds: Thresholds | None
    record: Record
    layers: dict[str, list[float]] | None = None

    @property
    def macs(self) -> float:
        return self.record.macs.mean().item()


def pareto(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats in both error and MACs, from the fewest MACs on."""
    order = sorted(range(len(points)), key=lambda i: (points[i].macs, points[i].record.error))
    front, best = [], float("inf")
    for i in order:
        if points[i].record.error < best:
            front.append(i)
            best = points[i].record.error
    return front


def summarise(point: Point, dense: int) -> dict[str, Any]:
    """A point as ``dsn sweep --json`` writes it; every figure with its 95 % confidence interval."""
    kept, clusters = point.record, point.record.clusters
    macs = mean_interval(kept.macs, clusters)
    return {
        "thresholds": point.thresholds,
        "error": {task: share_interval(~kept.correct(task), clusters) for task in kept.labels},
        "mean_error": kept.error,
        "loss": kept.loss,
        "skipped": {name: mean_interval(1 - gates.double().mean(1), clusters) for name, gates in kept.gates.items()},
        "macs": macs,
        "macs_fraction": macs["mean"] / dense,
    }
