"""Thresholds that keep a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsn_models import UserError

from .budget import CLOSE, REFINEMENTS, TOLERANCE, Budget
from .layer_search import LayerSearch
from .points import Point, summarise
from .sweeper import Found, Sweeper


def pick(sweeper: Sweeper, points: Sequence[Point], budget: Budget) -> Found:
    """The best point within a budget, refined between it and the nearest better one beyond; and that one, if any.

    Raises:
        UserError: no thresholds keep the budget; says what can be kept.
    """
    kind, limit = budget.kind, budget.limit
    within = [point for point in points if sweeper.cost(point, kind) <= limit]
    if not within:
        nearest = min(points, key=lambda point: sweeper.cost(point, kind))
        told = budget.amount(sweeper.cost(nearest, kind))
        raise UserError(f"budget {budget.text} cannot be met; the nearest that can is {budget.word}={told}")
    best = min(within, key=lambda point: sweeper.value(point, kind))
    better = [p for p in points if sweeper.cost(p, kind) > limit and sweeper.value(p, kind) < sweeper.value(best, kind)]
    if not better:
        return best, None
    beyond = min(better, key=lambda point: sweeper.cost(point, kind))
    assert best.thresholds is not None and beyond.thresholds is not None
    low, high = best.thresholds, beyond.thresholds
    for _ in range(REFINEMENTS):
        middle = sweeper.at({name: (low[name] + high[name]) / 2 for name in low})
        assert middle.thresholds is not None
        cost = sweeper.cost(middle, kind)
        if cost <= limit:
            low = middle.thresholds
            best = min(best, middle, key=lambda point: sweeper.value(point, kind))
            if cost > (1 - CLOSE) * limit:
                break
        else:
            high, beyond = middle.thresholds, middle
    return best, beyond


def picked(sweeper: Sweeper, points: Sequence[Point], budget: Budget) -> dict[str, Any]:
    """The pick on the half that chose it and on the other, where the budget is held against fresh images.

    Where one threshold per branch stays more than ``TOLERANCE`` below the budget though more would be better, each
    layer's is searched.
    """
    kind = budget.kind
    best, beyond = sweeper.settled(kind, lambda: pick(sweeper, points, budget))
    alike = best
    far = beyond is not None and sweeper.cost(best, kind) < (1 - TOLERANCE) * budget.limit and kind != "error"
    if sweeper.settings.per_layer or far:
        best, nearer = LayerSearch(sweeper, best, budget).run()
        beyond = nearer or beyond
    if beyond is not None and sweeper.cost(beyond, kind) <= budget.limit:  # by a line that was corrected since
        beyond = None
    assert best.thresholds is not None
    if best.layers is None:
        checked = sweeper.at(best.thresholds, sweeper.check)
    else:
        checked = sweeper.at_layers(best.layers, best, sweeper.check)
    opened = sweeper.open(sweeper.check)
    limit = budget.limit
    if kind == "latency":
        cost, limit = sweeper.measure(checked, sweeper.check), limit * (1 + TOLERANCE)
    elif kind == "macs":
        cost, limit = sweeper.cost(checked, "macs"), limit * (1 + TOLERANCE)
    else:
        cost = checked.record.error - opened.error
    return {
        "budget": budget.text,
        "kind": kind,
        "limit": budget.limit,
        "thresholds": best.thresholds,
        "layer_thresholds": best.layers,
        "one_per_branch": summarise(alike, sweeper.dense),
        "pick": {**summarise(best, sweeper.dense), "cost": sweeper.cost(best, kind)},
        "next_better": None if beyond is None else budget.amount(sweeper.cost(beyond, kind)),
        "check": {**summarise(checked, sweeper.dense), "cost": cost},
        "check_open_error": opened.error,
        "kept": cost <= limit,
    }
