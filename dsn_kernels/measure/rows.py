"""One row of a benchmark's document: what was measured of a network under its gates, on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .latency import InterleavedTimer, Latency
from .noise import Noise, Ratio


def bench_row(
    facts: Mapping[str, Any],
    ours: Latency,
    opened: Latency,
    others: Mapping[str, Latency],
    macs: float,
    macs_open: float,
    macs_dense: int,
) -> dict[str, Any]:
    """A row: what was run, how long it took, and what follows from that.

    Args:
        facts: batch, gates, draws, dtype and backend.
        ours, opened: with these gates and with all gates open.
        others: baselines by name.
        macs, macs_open, macs_dense: per image, executed, with all gates open, and of the dense network.
    """
    best = min(others, key=lambda name: others[name].median) if others else None
    macs_saved = 1 - macs / macs_open
    latency_saved = 1 - ours.median / opened.median
    return {
        **facts,
        "ours_ms": ours.as_dict(),
        "ours_open_ms": opened.as_dict(),
        "baselines_ms": {name: latency.as_dict() for name, latency in others.items()},
        "best_baseline": best,
        "speedup_vs_best": others[best].median / ours.median if best else None,
        "macs_dense": macs_dense,
        "macs_open": macs_open,
        "macs_executed": macs,
        "macs_saved": macs_saved,
        "latency_saved": latency_saved,
        "realised_fraction": latency_saved / macs_saved if macs_saved > 0 else None,
        "gflops": 2 * macs * facts["batch"] / ours.median / 1e6,
    }


class Timed:
    """What a timer found, and its noise.

    Args:
        timer: that has run; its contestants are ``"ours GATES"``, among them ``"ours open"``, and baselines by name.
        seed: of the resampling.
    """

    def __init__(self, timer: InterleavedTimer, seed: int = 0) -> None:
        self.latencies = timer.latencies()
        self.joules = timer.joules()
        self.noise = Noise(timer.turns, seed)

    def ratio(self, ours: str, other: str) -> Ratio:
        """The median of ``other`` over that of ``ours``."""
        return self.noise.ratio(self.latencies[other].median / self.latencies[ours].median, ours, other)

    def row(self, facts: Mapping[str, Any], macs: Mapping[str, float], macs_dense: int) -> dict[str, Any]:
        """:func:`bench_row` of the setting ``facts["gates"]``, with its noise, intervals and energy.

        Args:
            facts: as for :func:`bench_row`.
            macs: mean executed MACs per sample, by setting; ``"open"`` is one of them.
            macs_dense: MACs per sample of the network without gates.
        """
        gates = facts["gates"]
        name = f"ours {gates}"
        others = {other: latency for other, latency in self.latencies.items() if not other.startswith("ours ")}
        opened = self.latencies["ours open"]
        row = bench_row(facts, self.latencies[name], opened, others, macs[gates], macs["open"], macs_dense)
        against_best = self.ratio(name, row["best_baseline"]) if others else None
        open_best = self.ratio("ours open", row["best_baseline"]) if others else None
        against_open = self.ratio(name, "ours open")
        return row | {
            "rounds": self.noise.rounds,
            "noise": self.noise.spread(name),
            "speedup_interval": against_best.interval if against_best else None,
            "speedup_called": against_best.called if against_best else None,
            "open_speedup": open_best.value if open_best else None,
            "open_speedup_interval": open_best.interval if open_best else None,
            "open_speedup_called": open_best.called if open_best else None,
            "latency_saved_interval": [1 - 1 / against_open.low, 1 - 1 / against_open.high],
            "latency_saved_called": against_open.called,
            "energy_mj": self._millijoules(name, facts["batch"]),
            "baselines_energy_mj": {other: self._millijoules(other, facts["batch"]) for other in others},
        }

    def _millijoules(self, name: str, batch: int) -> float | None:
        """Per sample."""
        return 1e3 * self.joules[name] / batch if name in self.joules else None
