"""A threshold for each layer that keeps a budget."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from .budget import CLOSE, LINE_OFF, REFINEMENTS, Budget
from .operating_point import gates_per_layer
from .points import Point
from .sweeper import Found, Sweeper

_IMAGES = 256
_FILLS = 5
_LEFT = 0.2  # of a budget: where more of it is left, more would not be better
_STEP = 0.25  # of the images, by which a move changes for how many a layer runs

Layers = dict[str, list[float]]


class LayerSearch:
    """Searches on some of the images that picked, and lands on the budget on all of them.

    Args:
        sweeper: of the network.
        start: what one threshold per branch came to.
        budget: to keep.
    """

    def __init__(self, sweeper: Sweeper, start: Point, budget: Budget) -> None:
        self.sweeper, self.start, self.kind, self.limit = sweeper, start, budget.kind, budget.limit
        self.counts = gates_per_layer(sweeper.model)
        self.columns = {name: _columns(counts) for name, counts in self.counts.items()}
        self.order = [(name, layer) for name, columns in self.columns.items() for layer in range(len(columns))]
        self.few = sweeper.pick.part(torch.arange(min(_IMAGES, len(sweeper.pick.images))))
        self.open_error = sweeper.open(self.few).error
        self.slope = 0.0
        self.beyond: list[Point] = []
        opened = self._at(self._everywhere({name: low for name, (low, _) in sweeper.ends.items()}))
        self.path, self.prices = [opened], [0.0]
        # (loss per MAC, after how many moves that was found, layer, the move).
        self.waiting: list[tuple[float, int, int, Point | None]]
        self.waiting = [(-float("inf"), -1, i, None) for i in range(len(self.order))]

    def run(self) -> Found:
        """The better of what was found and ``start``, and the nearest that is better but beyond the budget, if any."""
        sweeper, worth = self.sweeper, partial(self.sweeper.value, kind=self.kind)
        line = sweeper.base_ms, sweeper.ms_per_mac
        whole, _ = sweeper.settled(self.kind, lambda: (self._search(), None))
        best, limit = whole, self.limit * (1 + LINE_OFF * (self.kind == "latency"))
        if worth(whole) >= worth(self.start) or sweeper.cost(whole, self.kind) > limit:
            best = self.start
            sweeper.base_ms, sweeper.ms_per_mac = line
        beyond = [point for point in self.beyond if worth(point) < worth(best)]
        return best, min(beyond, key=lambda point: point.macs, default=None)

    def _search(self) -> Point:
        assert self.start.thresholds is not None
        self.beyond.clear()
        alike = self._at(self._everywhere(self.start.thresholds))
        self.allowed = max(self.limit, self._cost(alike))  # these images may be a little harder than all of them
        best = self._descend(min(self._from_open(), alike, key=self._merit))
        assert best.layers is not None
        return self._fill(self._land(best.layers))

    def _from_open(self) -> Point:
        """From all gates open: whatever move costs the least loss for the MACs that it saves, until within the budget.

        How much a move costs changes little with the others: it is tried anew only where it comes first.
        """
        while self.waiting and (self.kind == "error" or self._cost(self.path[-1]) > self.limit):
            now, applied = self.path[-1], len(self.path)
            price, when, i, moved = heapq.heappop(self.waiting)
            if when != applied:
                moved = self._moved(now, *self.order[i], -_STEP)
                if moved is None or moved.macs >= now.macs:
                    continue
                price = (moved.record.loss - now.record.loss) / (now.macs - moved.macs)
                if self.waiting and price > self.waiting[0][0]:
                    heapq.heappush(self.waiting, (price, applied, i, moved))
                    continue
            assert moved is not None
            if self.kind != "error" or self._cost(moved) <= self.limit:
                self.path.append(moved)
                self.prices.append(max(0.0, price))
                heapq.heappush(self.waiting, (price, -1, i, None))
                self._tell(min(applied, len(self.order)))
        within = [n for n, point in enumerate(self.path) if self._cost(point) <= self.limit]
        chosen = within[0] if within and self.kind != "error" else len(self.path) - 1
        self.slope = self.prices[chosen]
        return self.path[chosen]

    def _descend(self, best: Point) -> Point:
        """Every layer in turn runs for a quarter of the images less, then more.

        What lowers ``loss + slope x MACs`` within the budget stays; the slope is what the last move from open cost.
        """
        for n, (step, (name, layer)) in enumerate((step, place) for step in (-_STEP, _STEP) for place in self.order):
            self._tell(n)
            moved = self._moved(best, name, layer, step)
            if moved is not None and self._merit(moved) < self._merit(best) and self._cost(moved) <= self.allowed:
                best = moved
        return best

    def _land(self, layers: Layers) -> Point:
        """Those layers on all images that picked, moved by as much as brings them within the budget.

        Layers that always or never run stay so.
        """
        whole = self.sweeper.at_layers(layers, self.start)
        cost = self.sweeper.cost(whole, self.kind)
        if self.kind == "error" or (1 - CLOSE) * self.limit < cost <= self.limit:
            return whole
        span = max(high - low for low, high in self.sweeper.ends.values())
        best, low, high = (whole, -span, 0.0) if cost <= self.limit else (None, 0.0, span)
        for _ in range(REFINEMENTS):
            shift = (low + high) / 2
            shifted = self.sweeper.at_layers(self._shifted(layers, shift), self.start)
            cost = self.sweeper.cost(shifted, self.kind)
            if cost > self.limit:
                low = shift
                self.beyond.append(shifted)
                continue
            high = shift
            best = shifted if best is None else min(best, shifted, key=lambda p: self.sweeper.value(p, self.kind))
            if cost > (1 - CLOSE) * self.limit:
                break
        return whole if best is None else best

    def _fill(self, best: Point) -> Point:
        """What is left of the budget goes to one layer after the other, run for as many images more as it takes."""
        worth = partial(self.sweeper.value, kind=self.kind)
        for name, layer in self.order:
            assert best.layers is not None
            cost = self.sweeper.cost(best, self.kind)
            if self.kind == "error" or not 0 < self.limit - cost < _LEFT * self.limit:
                break
            limit = best.layers[name][layer]
            scores = best.record.scores[name][:, self.columns[name][layer]]
            few, many = (scores > limit).double().mean().item(), 1.0
            for _ in range(_FILLS if few < 1 and self.limit - cost > CLOSE * self.limit else 0):
                share = (few + many) / 2
                layers = {**best.layers, name: list(best.layers[name])}
                layers[name][layer] = self._threshold(name, scores, share)
                if layers == best.layers:
                    break
                more = self.sweeper.at_layers(layers, self.start)
                if self.sweeper.cost(more, self.kind) > self.limit:
                    many = share
                    self.beyond.append(more)
                else:
                    few, best = share, min(best, more, key=worth)
        return best

    def _shifted(self, layers: Layers, shift: float) -> Layers:
        def moved(limit: float, low: float, high: float) -> float:
            return float(np.clip(limit + shift, low, high)) if low < limit < high else limit

        return {name: [moved(limit, *self.sweeper.ends[name]) for limit in limits] for name, limits in layers.items()}

    def _moved(self, point: Point, name: str, layer: int, step: float) -> Point | None:
        """With one layer run for ``step`` of the images more, or None if that is no other threshold."""
        assert point.layers is not None
        scores, current = point.record.scores[name][:, self.columns[name][layer]], point.layers[name][layer]
        share = float(np.clip((scores > current).double().mean().item() + step, 0, 1))
        limit = self._threshold(name, scores, share)
        if limit == current and step > 0:  # all scores are alike
            limit = self.sweeper.ends[name][0]
        if limit == current:
            return None
        limits = list(point.layers[name])
        limits[layer] = limit
        return self._at({**point.layers, name: limits})

    def _threshold(self, name: str, scores: Tensor, share: float) -> float:
        """What so many of the scores exceed; an end where that is all of them or none."""
        limit = round(float(np.quantile(scores.numpy(), 1 - share)), 4)
        low, high = self.sweeper.ends[name]
        if share == 1 or (scores > limit).all():
            return low
        return limit if share and (scores > limit).any() else high

    def _everywhere(self, thresholds: Mapping[str, float]) -> Layers:
        return {name: [thresholds[name]] * len(counts) for name, counts in self.counts.items()}

    def _at(self, layers: Layers) -> Point:
        return self.sweeper.at_layers(layers, self.start, self.few)

    def _cost(self, point: Point) -> float:
        return point.record.error - self.open_error if self.kind == "error" else self.sweeper.cost(point, self.kind)

    def _merit(self, point: Point) -> float:
        return point.record.loss + self.slope * point.macs

    def _tell(self, n: int) -> None:
        total = 2 * len(self.order)
        self.sweeper.on_step(f"layer threshold {n + 1} of {total}", n / total)


def _columns(counts: Sequence[int]) -> list[slice]:
    """The gates of each layer in the rows of a record."""
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
