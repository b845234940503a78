"""What chance alone does to medians that were timed in turns, and which differences it does not explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .latency import Turn

_RESAMPLES = 1000
_FEWEST_ROUNDS = 4  # two halves of two


@dataclass(frozen=True)
class Ratio:
    """The ratio of two medians.

    Attributes:
        value: the ratio.
        low, high: its 95 % interval.
        noise: the larger of both sides' :meth:`Noise.spread`; None where there are too few rounds to tell.
    """

    value: float
    low: float
    high: float
    noise: float | None

    @property
    def called(self) -> bool:
        """Whether it is a difference: the interval leaves out 1, and the ratio is further from 1 than the noise."""
        if self.noise is None:
            return False
        return not self.low <= 1 <= self.high and bool(abs(np.log(self.value)) > np.log1p(self.noise))

    @property
    def interval(self) -> list[float]:
        return [self.low, self.high]


class Noise:
    """Resamples the rounds of an :class:`InterleavedTimer`.

    A round, not a call, is what is resampled: calls of one turn share what the machine was doing. Of a turn its median
    counts, by input. Rounds are drawn for all contestants alike, so that what disturbed a whole round cancels in a
    ratio.

    Args:
        turns: of a timer, by name. A round that an interruption cut short is left out.
        seed: of the draws.
    """

    def __init__(self, turns: Mapping[str, Sequence[Turn]], seed: int = 0) -> None:
        whole = {name: [turn for turn in each if all(turn.seconds)] for name, each in turns.items()}
        self.rounds = min((len(each) for each in whole.values() if each), default=0)
        self._medians = {
            name: np.array([[np.median(seconds) for seconds in turn.seconds] for turn in each[: self.rounds]])
            for name, each in whole.items()
            if each
        }
        generator = np.random.default_rng(seed)
        self._picks = generator.integers(0, max(self.rounds, 1), (_RESAMPLES, self.rounds))
        self._orders = generator.permuted(np.tile(np.arange(self.rounds), (_RESAMPLES, 1)), axis=1)

    def _median(self, name: str, rounds: np.ndarray) -> np.ndarray:
        """Per row of round numbers: medians over the rounds, their mean over the inputs."""
        return np.median(self._medians[name][rounds], axis=-2).mean(-1)

    def spread(self, name: str) -> float | None:
        """How far the same thing differs from itself: |a / b - 1| of the medians of two random halves of its rounds.

        The 95th percentile over the ways to halve them; None with fewer than four rounds. Halves differ more than two
        whole runs would, by about a factor of 1.4, so this errs towards calling nothing.
        """
        if self.rounds < _FEWEST_ROUNDS:
            return None
        half = self.rounds // 2
        first, second = (self._median(name, part) for part in (self._orders[:, :half], self._orders[:, half:]))
        return float(np.expm1(np.percentile(np.abs(np.log(first / second)), 95)))

    def ratio(self, value: float, name: str, other: str) -> Ratio:
        """Of the medians, ``other`` / ``name``.

        Args:
            value: the ratio as it is reported; its interval is its bootstrap's, relative to it.
            name, other: contestants.
        """
        if name == other or self.rounds < _FEWEST_ROUNDS:
            return Ratio(value, value, value, self.spread(name))
        everything = np.arange(self.rounds)
        drawn = self._median(other, self._picks) / self._median(name, self._picks)
        whole = self._median(other, everything) / self._median(name, everything)
        low, high = value * np.percentile(drawn / whole, [2.5, 97.5])
        spreads = [spread for spread in map(self.spread, (name, other)) if spread is not None]
        return Ratio(value, float(low), float(high), max(spreads))
