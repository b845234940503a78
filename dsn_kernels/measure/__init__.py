"""FLOPs, latency, dense baselines and reports."""

from .flops import FlopCount, flops
from .latency import InterleavedTimer, Latency
from .timeline import Timeline, timeline

__all__ = ["FlopCount", "InterleavedTimer", "Latency", "Timeline", "flops", "timeline"]
