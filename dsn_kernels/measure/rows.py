"""One row of a benchmark's document: what was measured of a network under its gates, on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .latency import InterleavedTimer, Latency
from .noise import Noise, Ratio


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

    def baselines(self) -> dict[str, Latency]:
        return {name: latency for name, latency in self.latencies.items() if not name.startswith("ours ")}

    def ratio(self, ours: str, other: str) -> Ratio:
        """The median of ``other`` over that of ``ours``."""
        return self.noise.ratio(self.latencies[other].median / self.latencies[ours].median, ours, other)

    def row(self, batch: int, gates: str, macs: Mapping[str, float], macs_dense: int) -> dict[str, Any]:
        """The measured part of a row of ``dsn bench --json``.

        Args:
            batch: samples in a call.
            gates: the setting's name.
            macs: mean executed MACs per sample, by setting; ``"open"`` is one of them.
            macs_dense: MACs per sample of the network without gates.
        """
        name = f"ours {gates}"
        ours, opened, others = self.latencies[name], self.latencies["ours open"], self.baselines()
        best = min(others, key=lambda other: others[other].median) if others else None
        against_best = self.ratio(name, best) if best else None
        against_open = self.ratio(name, "ours open")
        macs_saved = 1 - macs[gates] / macs["open"]
        latency_saved = 1 - ours.median / opened.median
        return {
            "ours_ms": ours.as_dict(),
            "ours_open_ms": opened.as_dict(),
            "baselines_ms": {other: latency.as_dict() for other, latency in others.items()},
            "best_baseline": best,
            "speedup_vs_best": against_best.value if against_best else None,
            "speedup_interval": against_best.interval if against_best else None,
            "speedup_called": against_best.called if against_best else None,
            "macs_dense": macs_dense,
            "macs_open": macs["open"],
            "macs_executed": macs[gates],
            "macs_saved": macs_saved,
            "latency_saved": latency_saved,
            "latency_saved_interval": [1 - 1 / against_open.low, 1 - 1 / against_open.high],
            "latency_saved_called": against_open.called,
            "realised_fraction": latency_saved / macs_saved if macs_saved > 0 else None,
            "gflops": 2 * macs[gates] * batch / ours.median / 1e6,
            "rounds": self.noise.rounds,
            "noise": self.noise.spread(name),
            "energy_mj": self._millijoules(name, batch),
            "baselines_energy_mj": {other: self._millijoules(other, batch) for other in others},
        }

    def _millijoules(self, name: str, batch: int) -> float | None:
        """Per sample."""
        return 1e3 * self.joules[name] / batch if name in self.joules else None
