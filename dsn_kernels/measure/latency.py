"""Latency of several callables measured in turns, so that what disturbs the machine disturbs them all."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from .energy import EnergyMeter
from .ranges import named_range


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


@dataclass
class Turn:
    """The counted calls of one turn: their seconds by input, and the joules they took where a counter was read."""

    seconds: list[list[float]]
    joules: float | None = None

    @property
    def calls(self) -> int:
        return sum(map(len, self.seconds))


class InterleavedTimer:
    """Times callables in turns, under ``torch.inference_mode()``.

    In a round every callable has one turn, in an order shuffled per round. A turn is one call that is not counted,
    which brings its data back to the caches and outlives the busy-waiting threads of the one before, and then
    counted calls until ``turn_seconds`` have passed, at least one. What has several inputs goes through all of them
    in every pass of its turn, so that each is counted as often as the others. Where there is a CUDA device the
    counted calls of a turn are an NVTX range of its name.

    Args:
        calls: what to time, by name: a callable, or a sequence of them, one per input.
        seed: of the order.
        clock: seconds, monotonic; for tests.
        energy: read around the counted calls of every turn.
    """

    def __init__(
        self,
        calls: Mapping[str, Callable[[], object] | Sequence[Callable[[], object]]],
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        energy: EnergyMeter | None = None,
    ) -> None:
        self.calls = {name: [call] if callable(call) else list(call) for name, call in calls.items()}
        self.turns: dict[str, list[Turn]] = {name: [] for name in self.calls}
        self._order = random.Random(seed)
        self._clock = clock
        self._energy = energy

    @property
    def samples(self) -> dict[str, list[list[float]]]:
        """Seconds of all counted calls, by name and input."""
        return {
            name: [[s for turn in self.turns[name] for s in turn.seconds[i]] for i in range(len(calls))]
            for name, calls in self.calls.items()
        }

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
        calls = self.calls[name]
        calls[-1]()
        turn = Turn([[] for _ in calls])
        self.turns[name].append(turn)
        before = None if self._energy is None else self._energy.read()
        with named_range(name):
            self._count(calls, turn.seconds, turn_seconds)
        if self._energy is not None and before is not None:
            turn.joules = self._energy.joules_since(before)

    def _count(self, calls: Sequence[Callable[[], object]], samples: list[list[float]], turn_seconds: float) -> None:
        clock = self._clock
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

    def joules(self) -> dict[str, float]:
        """Joules per call, the mean over the turns that were metered; of what has none, nothing."""
        result = {}
        for name, turns in self.turns.items():
            metered = [(turn.joules, turn.calls) for turn in turns if turn.joules is not None]
            if metered:
                result[name] = sum(joules for joules, _ in metered) / sum(calls for _, calls in metered)
        return result
