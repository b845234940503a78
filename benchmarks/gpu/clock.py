"""Times on the device: graphs, events, turns."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from dsn_kernels.measure import Latency

from .plan import Scale

Call = Callable[[], object]


def graphed(call: Call) -> Call:
    """One CUDA graph of a call whose tensors stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def interleave(calls: dict[str, Call], scale: Scale, deadline: float) -> dict[str, Latency]:
    """Milliseconds per call by CUDA events, the contestants in turns.

    Replays of graphs follow one another, ours and the baselines' alike, and find in the second-level cache what the
    replay before has left, as they do where a model is served. Any other call finds it flushed.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    counts: dict[str, int] = {}
    flush = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.uint8).cuda()
    flushes = {name: None if is_replay(call) else flush for name, call in calls.items()}
    for name, call in calls.items():
        call()
        counts[name] = max(1, int(scale.turn_ms / max(_elapsed(call, 3, flushes[name]), 1e-3)))
    for _ in range(scale.rounds):
        for name, call in calls.items():
            call()
            samples[name].append(_elapsed(call, counts[name], flushes[name]) / 1e3)
        if time.monotonic() > deadline:
            break
    return {name: Latency.of(values) for name, values in samples.items()}


def is_replay(call: Call) -> bool:
    """Whether a call is what :func:`graphed` gave."""
    return isinstance(getattr(call, "__self__", None), torch.cuda.CUDAGraph)


def _elapsed(call: Call, count: int, flush: Tensor | None) -> float:
    """Mean milliseconds; of calls one behind the other, or of each by itself behind a write to all of ``flush``."""
    at_once = count if flush is None else 1
    total = 0.0
    for _ in range(count // at_once):
        if flush is not None:
            flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(at_once):
            call()
        end.record()
        end.synchronize()
        total += begin.elapsed_time(end)
    return total / count
