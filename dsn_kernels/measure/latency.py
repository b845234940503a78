"""Latency of several callables measured in turns, so that what disturbs the machine disturbs them all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Latency:
    """Milliseconds per call: median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The percentiles of measured ``seconds`` (at least one), linear between neighbours."""
        p10, median, p90 = np.percentile(np.asarray(seconds) * 1e3, [10, 50, 90])
        return cls(float(median), float(p10), float(p90))

    @classmethod
    def pooled(cls, inputs: Sequence[Sequence[float]]) -> Latency:
        """Of measured ``seconds`` of several inputs: the mean of each one's percentiles.

        Where inputs differ in their work, the mean of their medians goes with their mean work; the median of all times
        would be that of some input in the middle.
        """
        each = [cls.of(seconds) for seconds in inputs if seconds]
        return cls(*(float(np.mean([getattr(one, key) for one in each])) for key in ("median", "p10", "p90")))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class InterleavedTimer:
    """Times callables in turns, under ``torch.inference_mode()``.

    In a round every callable has one turn, in an order shuffled per round. A turn is one call that is not counted,
    which brings its data back to the caches and outlives the busy-waiting threads of the one before, and then
    counted calls until ``turn_seconds`` have passed, at least one. What has several inputs goes through all of them
    in every pass of its turn, so that each is counted as often as the others.

    Args:
        calls: what to time, by name: a callable, or a sequence of them, one per input.
        seed: of the order.
        clock: seconds, monotonic; for tests.
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[[], object] | Sequence[Callable[[], object]]],
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.calls = {name: [call] if callable(call) else list(call) for name, call in calls.items()}
        self.samples: dict[str, list[list[float]]] = {name: [[] for _ in c] for name, c in self.calls.items()}
        self._order = random.Random(seed)
        self._clock = clock

    def run(
        self,
        seconds: float,
        min_rounds: int = 5,
        turn_seconds: float | None = None,
        on_round: Callable[[float], None] | None = None,
    ) -> None:
        """Runs rounds until ``seconds`` per callable have passed and ``min_rounds`` are done.

        Turns last a tenth of a second, or of ``seconds`` if that is less. ``on_round`` is told the fraction done, in
        [0, 1]. An interruption keeps the samples taken so far.
        """
        if turn_seconds is None:
            turn_seconds = min(0.1, seconds / 10)
        budget = seconds * len(self.calls)
        start = self._clock()
        rounds = 0
        with torch.inference_mode():
            while rounds < min_rounds or self._clock() - start < budget:
                names = list(self.calls)
                self._order.shuffle(names)
                for name in names:
                    self._turn(name, turn_seconds)
                rounds += 1
                if on_round is not None:
                    elapsed = self._clock() - start
                    on_round(min(1.0, rounds / min_rounds, elapsed / budget if budget else 1.0))

    def _turn(self, name: str, turn_seconds: float) -> None:
        calls, samples, clock = self.calls[name], self.samples[name], self._clock
        calls[-1]()
        start = before = clock()
        while True:
            for call, seconds in zip(calls, samples, strict=True):
                call()
                after = clock()
                seconds.append(after - before)
                before = after
            if after - start >= turn_seconds:
                return

    def latencies(self) -> dict[str, Latency]:
        """Of every callable with at least one counted call."""
        return {name: Latency.pooled(samples) for name, samples in self.samples.items() if samples[0]}
