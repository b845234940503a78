"""Runs a network at any thresholds, and tells what they cost."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dsn_kernels
from dsn_models.intervals import Z95

from ..measure.latency import InterleavedTimer
from ..measure.networks import count_dense, gate_counts, open_gates
from ..measure.records import Labelled, Record, counted, record
from .budget import LINE_OFF, Budget
from .operating_point import GateScale, per_gate
from .points import Point

_INPUTS_TIMED = (8, 128)  # least and most batches of images per point, so many as a tenth of a second takes
_TIMINGS = 4
Found = tuple[Point, Point | None]  # the best within a budget, and the nearest that is better but beyond it


@dataclass(frozen=True)
class SweepSettings:
    """What :func:`~.sweep.sweep` measures.

    Attributes:
        steps: thresholds per branch, quantiles of its gates' scores; its own, and ends that all exceed or none, are
            added.
        batch: of the latency.
        seconds: of timing per point.
        budget: thresholds are picked for it, if given.
        per_layer: from the pick on, a threshold of each layer is searched.
        seed: of the split and the timing.
    """

    steps: int = 7
    batch: int = 1
    seconds: float = 0.5
    budget: Budget | None = None
    per_layer: bool = False
    seed: int = 0


class Sweeper:
    """The passes over both splits, and the latency that goes with MACs."""

    def __init__(self, model: Any, data: Labelled, settings: SweepSettings, on_step: Callable[[str, float], None]):
        self.model, self.settings, self.on_step = model.eval(), settings, on_step
        self.names = list(gate_counts(model))
        self.scale_of_gates = GateScale(model)
        self.own = self.scale_of_gates.own(model)
        self.fast: Any = dsn_kernels.accelerate(self.scale_of_gates.network(model))
        self.dense = count_dense(model)
        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(settings.seed))
        half = len(order) // 2
        self.pick, self.check = data.part(order[:half]), data.part(order[half:])
        self.opened = Point(None, self.open(self.pick))
        self.ends = {name: self._ends(scores) for name, scores in self.opened.record.scores.items()}
        self.ms_per_mac, self.base_ms, self.deviation_ms, self.open_ms = 0.0, 0.0, 0.0, 0.0

    def _record(self, data: Labelled, **options: Any) -> Record:
        kept = record(self.fast, data, **options)
        return dataclasses.replace(kept, scores={k: self.scale_of_gates.outer(s) for k, s in kept.scores.items()})

    def _inner(self, thresholds: Mapping[str, float]) -> dict[str, float]:
        return {name: self.scale_of_gates.inner(threshold) for name, threshold in thresholds.items()}

    def _ends(self, scores: Tensor) -> tuple[float, float]:
        """A threshold that every score exceeds and one that none does; of probabilities 0 and 1."""
        low, high = scores.min().item(), scores.max().item()
        if not self.scale_of_gates.hard and low >= 0 and high <= 1:
            return 0.0, 1.0
        span = high - low  # a gate's score may be another where layers before it are skipped
        return float(math.floor(low - span)), float(math.ceil(high + span))

    def open(self, data: Labelled) -> Record:
        """What the network does with every gate forced open."""
        return self._record(data, all_open=True)

    def at(self, thresholds: Mapping[str, float], data: Labelled | None = None) -> Point:
        return Point(dict(thresholds), self._record(data or self.pick, thresholds=self._inner(thresholds)))

    def at_layers(self, layers: Mapping[str, list[float]], like: Point, data: Labelled | None = None) -> Point:
        """With a threshold per layer. They become the accelerated network's own."""
        self._use(layers)
        return Point(like.thresholds, self._record(data or self.pick), dict(layers))

    def _use(self, layers: Mapping[str, list[float]]) -> None:
        inner = {name: [self.scale_of_gates.inner(limit) for limit in limits] for name, limits in layers.items()}
        self.fast.thresholds.copy_(per_gate(self.model, inner))

    def grid(self) -> list[Point]:
        """Every combination of the branches' thresholds."""
        base = self.at(self.own).record
        choices = []
        for name in self.names:
            scores = base.scores[name].double().numpy()
            # Scores that are clipped lie on the ends for the most part; a threshold tells apart only those between.
            inside = scores[(scores > scores.min()) & (scores < scores.max())]
            quantiles = np.quantile(inside if inside.size else scores, np.linspace(0, 1, self.settings.steps + 2)[1:-1])
            choices.append(sorted({*self.ends[name], self.own[name], *(round(float(q), 4) for q in quantiles)}))
        points = []
        total = int(np.prod([len(choice) for choice in choices]))
        for n, values in enumerate(itertools.product(*choices)):
            self.on_step(f"threshold {n + 1} of {total}", n / total)
            points.append(self.at(dict(zip(self.names, values, strict=True))))
        return points

    def time(self, points: Sequence[Point], data: Labelled) -> list[dict[str, float]]:
        """Milliseconds per batch of each point on images of ``data``, in turns; with the MACs of those images."""
        batch, count = self.settings.batch, self._inputs(data)
        inputs = [data.images[torch.arange(n * batch, (n + 1) * batch) % len(data.images)] for n in range(count)]
        calls, macs = {}, []
        for i, point in enumerate(points):
            options: dict[str, Any] = {}  # those of a point with layers are the network's own by now
            if point.thresholds is None:
                options["forced_gates"] = open_gates(self.model, batch)
            elif point.layers is None:
                options["thresholds"] = self._inner(point.thresholds)
            calls[str(i)] = [partial(self.fast, images, **options) for images in inputs]
            with torch.inference_mode():
                macs.append(torch.cat([counted(self.fast, images, options)[1] for images in inputs]))
        timer = InterleavedTimer(calls, self.settings.seed)
        timer.run(self.settings.seconds, on_round=lambda done: self.on_step("timing", done))
        latencies = timer.latencies()
        return [{**latencies[str(i)].as_dict(), "macs": executed.mean().item()} for i, executed in enumerate(macs)]

    @torch.inference_mode()
    def _inputs(self, data: Labelled) -> int:
        """How many batches to time a point on."""
        batch = self.settings.batch
        images = data.images[:batch]
        self.fast(images)
        start = time.perf_counter()
        self.fast(images)
        least, most = _INPUTS_TIMED
        wanted = int(np.clip(min(0.1, self.settings.seconds / 5) / (time.perf_counter() - start), least, most))
        return max(1, min(wanted, len(data.images) // batch))

    def measure(self, point: Point, data: Labelled) -> float:
        """Milliseconds per batch of a point whose record is of ``data``, at the speed when the line was fitted.

        Timed on some of the images, and by the line from the MACs of these to those of all; in turns with every gate
        open, so that a machine that has become slower or faster since changes nothing.
        """
        if point.layers:
            self._use(point.layers)
        row, opened = self.time([point, self.opened], data)
        ms = row["median"] + self.ms_per_mac * (point.macs - row["macs"])
        return ms * self.open_ms / opened["median"]

    def own_ms(self) -> float:
        """Milliseconds of a batch as the network is, by its own thresholds."""
        return self.measure(Point(self.own, self._record(self.pick), {}), self.pick)

    def fit(self, timed: Sequence[Mapping[str, float]]) -> float:
        """Fits ``latency = base_ms + ms_per_mac x MACs``; returns the largest relative deviation of what was timed.

        The first of ``timed`` is every gate open.
        """
        self.open_ms = timed[0]["median"]
        macs, ms = (np.array([row[key] for row in timed]) for key in ("macs", "median"))
        if len(set(macs)) < 2:
            self.ms_per_mac, self.base_ms = 0.0, float(ms.mean())
        else:
            slope, base = np.polyfit(macs, ms, 1)
            self.ms_per_mac, self.base_ms = max(float(slope), 0.0), float(base)
        off = self.base_ms + self.ms_per_mac * macs - ms
        self.deviation_ms = float(np.sqrt((off**2).sum() / max(1, len(ms) - 2)))
        return float(np.max(np.abs(off) / ms))

    def settled(self, kind: str, search: Callable[[], Found]) -> Found:
        """What ``search`` finds for a budget of ``kind``.

        What it finds for a latency is timed; where the line was off by more than a hundredth it is corrected and the
        search made anew.
        """
        found = search()
        for _ in range(_TIMINGS if kind == "latency" else 0):
            off = self.measure(found[0], self.pick) / self.latency(found[0].macs)
            self.base_ms, self.ms_per_mac = off * self.base_ms, off * self.ms_per_mac
            if abs(off - 1) < LINE_OFF:
                break
            found = search()
        return found

    def latency(self, macs: float) -> float:
        return self.base_ms + self.ms_per_mac * macs

    def latency_interval(self, macs: Mapping[str, float]) -> dict[str, float]:
        """Of a mean of MACs with its interval: the latency, and the interval that follows with what the line is off."""
        half = math.hypot(self.ms_per_mac * (macs["high"] - macs["mean"]), Z95 * self.deviation_ms)
        mean = self.latency(macs["mean"])
        return {"mean": mean, "low": max(0.0, mean - half), "high": mean + half}

    def cost(self, point: Point, kind: str) -> float:
        """What a budget of ``kind`` limits."""
        if kind == "macs":
            return point.macs / self.dense
        if kind == "latency":
            return self.latency(point.macs)
        return point.record.error - self.opened.record.error

    def value(self, point: Point, kind: str) -> tuple[float, float]:
        """What is made least within the budget; ties go to the other of the two."""
        return (point.macs, point.record.loss) if kind == "error" else (point.record.error, point.record.loss)
