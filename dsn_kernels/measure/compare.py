"""The three things a report times: the dense network, every gate open, and skipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from .latency import InterleavedTimer
from .networks import dense_network, gate_counts, run
from .noise import Noise


def compare(
    model: Any,
    fast: Any,
    images: Tensor,
    batches: Sequence[int],
    seconds: float,
    on_step: Callable[[str, float], None],
) -> list[dict[str, Any]]:
    """Times a network on ``images``, in turns; every call takes the next batch of them.

    Returns:
        Per batch size, milliseconds as ``Latency.as_dict``: ``dense_ms`` of the dense network in eager PyTorch,
        ``open_ms`` of ``fast`` with every gate open, ``skipping_ms`` as the gates decide; and ``speedup``, the ratio of
        the medians of the first and the last, with its 95 % ``speedup_interval`` and whether it is more than noise,
        ``speedup_called``.
    """
    dense = dense_network(model).eval()
    rows = []
    for batch in batches:
        parts = [part for part in images.split(batch) if len(part) == batch]
        every = {name: torch.ones(batch, count, dtype=torch.uint8) for name, count in gate_counts(model).items()}
        contestants: dict[str, Callable[[Tensor], object]] = {
            "dense_ms": dense,
            "open_ms": partial(run, fast, gates=every),
            "skipping_ms": partial(run, fast),
        }
        timer = InterleavedTimer({name: _next_of(call, parts) for name, call in contestants.items()})
        timer.run(seconds, on_round=partial(on_step, f"timing batch {batch}"))
        times = {name: latency.as_dict() for name, latency in timer.latencies().items()}
        ratio = Noise(timer.turns).ratio(
            times["dense_ms"]["median"] / times["skipping_ms"]["median"], "skipping_ms", "dense_ms"
        )
        told = {"speedup": ratio.value, "speedup_interval": ratio.interval, "speedup_called": ratio.called}
        rows.append({"batch": batch, **times, **told})
    return rows


def _next_of(call: Callable[[Tensor], object], parts: list[Tensor]) -> Callable[[], object]:
    queue = cycle(parts)
    return lambda: call(next(queue))
