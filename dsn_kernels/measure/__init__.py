"""FLOPs, latency, dense baselines and reports."""

from .flops import FlopCount, flops
from .latency import InterleavedTimer, Latency

__all__ = ["FlopCount", "InterleavedTimer", "Latency", "flops"]
