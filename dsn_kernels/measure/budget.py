"""Thresholds that keep a budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dsn_models import UserError

from .operating_point import gates_per_layer
from .points import Point, Thresholds, pareto, summarise
from .records import record

if TYPE_CHECKING:
    from .sweep import Sweeper

_BUDGET = re.compile(r"(latency)=(\d*\.?\d+)\s*ms|(macs)=(\d*\.?\d+)|(error)=\+?(\d*\.?\d+)\s*pt")
_REFINEMENTS = 7
_TIMINGS = 4
TOLERANCE = 0.03  # a latency or MACs so little over their budget keep it
_SEARCH_IMAGES = 256


@dataclass(frozen=True)
class Budget:
    """``latency=2ms`` (per batch), ``macs=0.6`` (of the dense network's) or ``error=+0.5pt`` (above all gates open).

    Under the first two the error is made least, under the third the MACs.
    """

    text: str

    def __post_init__(self) -> None:
        if not _BUDGET.fullmatch(self.text):
            raise UserError(
                f"budget is {self.text!r}; expected latency=2ms, macs=0.6 (of the dense network's) or error=+0.5pt"
            )

    @property
    def kind(self) -> str:
        """ "latency", "macs" or "error"."""
        return self.text.split("=")[0]

    @property
    def limit(self) -> float:
        """Milliseconds, a fraction of the dense MACs, or a fraction of all answers."""
        match = _BUDGET.fullmatch(self.text)
        assert match is not None
        value = float(next(group for group in match.groups()[1::2] if group is not None))
        return value / 100 if self.kind == "error" else value


def pick(sweeper: Sweeper, points: Sequence[Point], budget: Budget) -> Point:
    """The best point within a budget, refined between it and the nearest better one beyond.

    A pick for a latency is timed; where the line was off by more than a hundredth it is corrected and the pick made
    anew.

    Raises:
        UserError: no thresholds keep the budget; says what can be kept.
    """
    best = _best(sweeper, points, budget)
    for _ in range(_TIMINGS if budget.kind == "latency" else 0):
        off = sweeper.measure(best, sweeper.pick) / sweeper.latency(best.macs)
        sweeper.scale(off)
        if abs(off - 1) < 0.01:
            break
        best = _best(sweeper, points, budget)
    return best


def _best(sweeper: Sweeper, points: Sequence[Point], budget: Budget) -> Point:
    kind, limit = budget.kind, budget.limit
    within = [point for point in points if sweeper.cost(point, kind) <= limit]
    if not within:
        nearest = min(points, key=lambda point: sweeper.cost(point, kind))
        cost = sweeper.cost(nearest, kind)
        told = {"latency": f"{cost:.3g}ms", "macs": f"{cost:.3g}", "error": f"{100 * cost:+.2f}pt"}[kind]
        raise UserError(f"budget {budget.text} cannot be met; the nearest that can is {kind}={told}")
    best = min(within, key=lambda point: sweeper.value(point, kind))
    beyond = [p for p in points if sweeper.cost(p, kind) > limit and sweeper.value(p, kind) < sweeper.value(best, kind)]
    if not beyond:
        return best
    assert best.thresholds is not None
    low: Thresholds = best.thresholds
    far = min(beyond, key=lambda point: sweeper.cost(point, kind)).thresholds
    assert far is not None
    high = far
    for _ in range(_REFINEMENTS):
        middle = sweeper.at({name: (low[name] + high[name]) / 2 for name in low})
        if sweeper.cost(middle, kind) <= limit:
            low = dict(middle.thresholds or {})
            best = min(best, middle, key=lambda point: sweeper.value(point, kind))
        else:
            high = dict(middle.thresholds or {})
    return best


def search_layers(sweeper: Sweeper, start: Point, points: Sequence[Point], budget: Budget) -> Point:
    """A threshold per layer that keeps the budget and beats ``start``, or ``start`` where the search finds none.

    Coordinate descent on some of the images: every layer in turn runs a quarter of them less, then a quarter more,
    and what lowers ``loss + slope x MACs`` within the budget stays; the slope is that of the Pareto front at ``start``.
    """
    assert start.thresholds is not None
    kind, limit = budget.kind, budget.limit
    slope = _slope(start, [points[i] for i in pareto(points)])
    few = sweeper.pick.part(torch.arange(min(_SEARCH_IMAGES, len(sweeper.pick.images))))
    alike = {name: [start.thresholds[name]] * len(counts) for name, counts in gates_per_layer(sweeper.model).items()}
    best = sweeper.at_layers(alike, start, few)
    opened = record(sweeper.fast, few, all_open=True)

    def cost(point: Point) -> float:
        return point.record.error - opened.error if kind == "error" else sweeper.cost(point, kind)

    def merit(point: Point) -> float:
        return point.record.loss + slope * point.macs

    allowed = max(limit, cost(best))  # these images may be a little harder than all of them
    columns = {name: _columns(counts) for name, counts in gates_per_layer(sweeper.model).items()}
    moves = [(step, name, layer) for step in (-0.25, 0.25) for name in columns for layer in range(len(columns[name]))]
    for n, (step, name, layer) in enumerate(moves):
        sweeper.on_step(f"layer threshold {n + 1} of {len(moves)}", n / len(moves))
        assert best.layers is not None
        scores, current = best.record.scores[name][:, columns[name][layer]], best.layers[name][layer]
        share = float(np.clip((scores > current).double().mean().item() + step, 0, 1))
        limits = list(best.layers[name])
        limits[layer] = round(float(np.quantile(scores.numpy(), 1 - share)), 4)
        if limits[layer] == current:
            continue
        moved = sweeper.at_layers({**best.layers, name: limits}, start, few)
        if merit(moved) < merit(best) and cost(moved) <= allowed:
            best = moved
    assert best.layers is not None
    whole = sweeper.at_layers(best.layers, start)
    better = sweeper.cost(whole, kind) <= limit and sweeper.value(whole, kind) < sweeper.value(start, kind)
    return whole if better else start


def _columns(counts: Sequence[int]) -> list[slice]:
    """The gates of each layer in the rows of a record."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _slope(start: Point, front: Sequence[Point]) -> float:
    """How much loss a MAC buys on the front between the points around ``start``."""
    fewer = [point for point in front if point.macs < start.macs]
    more = [point for point in front if point.macs > start.macs]
    low, high = fewer[-1] if fewer else start, more[0] if more else start
    return max(0.0, (low.record.loss - high.record.loss) / (high.macs - low.macs)) if high.macs > low.macs else 0.0


def picked(sweeper: Sweeper, points: Sequence[Point], budget: Budget) -> dict[str, Any]:
    """The pick on the half that chose it and on the other, where the budget is held against fresh images."""
    best = pick(sweeper, points, budget)
    alike = best
    if sweeper.settings.per_layer:
        best = search_layers(sweeper, best, points, budget)
    assert best.thresholds is not None
    if best.layers is None:
        checked = sweeper.at(best.thresholds, sweeper.check)
    else:
        checked = sweeper.at_layers(best.layers, best, sweeper.check)
    opened = record(sweeper.fast, sweeper.check, all_open=True)
    limit = budget.limit
    if budget.kind == "latency":
        cost, limit = sweeper.measure(checked, sweeper.check), limit * (1 + TOLERANCE)
    elif budget.kind == "macs":
        cost, limit = sweeper.cost(checked, "macs"), limit * (1 + TOLERANCE)
    else:
        cost = checked.record.error - opened.error
    return {
        "budget": budget.text,
        "kind": budget.kind,
        "limit": budget.limit,
        "thresholds": best.thresholds,
        "layer_thresholds": best.layers,
        "one_per_branch": summarise(alike, sweeper.dense),
        "pick": {**summarise(best, sweeper.dense), "cost": sweeper.cost(best, budget.kind)},
        "check": {**summarise(checked, sweeper.dense), "cost": cost},
        "check_open_error": opened.error,
        "kept": cost <= limit,
    }
