"""Networks under load: requests that arrive at random, batched as they come."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dsn_kernels
from dsn_models import UserError

from .networks import dense_network, gate_counts, open_gates, run
from .ranges import named_range

_NUMBER = r"\d*\.?\d+"
_LOAD = re.compile(rf"qps={_NUMBER},slo={_NUMBER}(ms)?")
_LARGEST = 1e6
_SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Load:
    """``qps=200,slo=20ms``: five loads up to 200 requests a second; an answer within 20 ms of its arrival is in time.

    Raises:
        UserError: the text is no such pair, or a number is not positive or beyond a million.
    """

    text: str

    def __post_init__(self) -> None:
        if not _LOAD.fullmatch(self.text) or not all(0 < number <= _LARGEST for number in self._numbers):
            raise UserError(f"load is {self.text!r}; expected requests a second and milliseconds: qps=200,slo=20ms")

    @property
    def rates(self) -> list[float]:
        """Requests per second of each step."""
        return [share * self._numbers[0] for share in _SHARES]

    @property
    def slo_ms(self) -> float:
        return self._numbers[1]

    @property
    def _numbers(self) -> list[float]:
        return [float(number) for number in re.findall(_NUMBER, self.text)]


@dataclass(frozen=True)
class Served:
    """Of one load: seconds from each request's arrival to its answer, and the sizes of the batches."""

    latencies: np.ndarray
    batches: list[int]


def serve(
    answer: Callable[[Sequence[int]], object],
    arrivals: Sequence[float],
    max_batch: int,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Served:
    """Answers requests as one worker: all that wait, up to ``max_batch``, form the next batch.

    Args:
        answer: runs a batch of requests, given by number.
        arrivals: seconds from the start at which each arrives, in order.
        max_batch: requests in a batch at most.
        clock, sleep: seconds; for tests.
    """
    start, done = clock(), 0
    latencies, batches = np.empty(len(arrivals)), []
    while done < len(arrivals):
        now = clock() - start
        if arrivals[done] > now:
            sleep(arrivals[done] - now)
            continue
        waiting = int(np.searchsorted(np.asarray(arrivals), now, side="right"))
        last = min(waiting, done + max_batch)
        answer(range(done, last))
        finished = clock() - start
        latencies[done:last] = finished - np.asarray(arrivals[done:last])
        batches.append(last - done)
        done = last
    return Served(latencies, batches)


def poisson_arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Arrival times of a Poisson process of ``rate`` a second within ``seconds``; at least one."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1 / rate, max(1, round(rate * seconds)))
    return np.cumsum(gaps)


def under_load(
    model: Any,
    name: str,
    images: Tensor,
    load: Load,
    *,
    max_batch: int = 64,
    seconds: float = 3.0,
    seed: int = 0,
    gates: Mapping[str, Tensor] | None = None,
    on_step: Callable[[str, float], None] = lambda text, fraction: None,
) -> dict[str, Any]:
    """The dense network, the accelerated one with every gate open, and skipping, under the same arrivals.

    Args:
        model: of a family that ``dsn_kernels.accelerate`` serves.
        name: what the document calls it.
        images: request n asks for image n modulo their number.
        load: requests per second and the time within which an answer counts.
        max_batch: requests in a batch at most.
        seconds: of arrivals per load.
        seed: of the arrivals.
        gates: forced when skipping, uint8 [images, L] by name; the network decides if not given.
        on_step: told what is going on, and which part of it is done.

    Returns:
        ``rows`` of network and rate, with p50, p90 and p99 in milliseconds, the share of answers in time and the mean
        batch; ``largest_rate``, per network the highest rate at which 99 % are in time, or None.

    Raises:
        UserError: nothing in the model can be accelerated.
    """
    fast: Any = dsn_kernels.accelerate(model.eval())
    dense = dense_network(model).eval()

    def skipping(requests: Sequence[int]) -> object:
        chosen = torch.tensor(requests) % len(images)
        return run(fast, images[chosen], None if gates is None else {key: g[chosen] for key, g in gates.items()})

    def every(requests: Sequence[int]) -> object:
        return run(fast, images[torch.tensor(requests) % len(images)], open_gates(model, len(requests)))

    networks: dict[str, Callable[[Sequence[int]], object]] = {
        "dense": lambda requests: dense(images[torch.tensor(requests) % len(images)]),
        "open": every,
    }
    if gate_counts(model):
        networks["skipping"] = skipping
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for step, rate in enumerate(load.rates):
            arrivals = poisson_arrivals(rate, seconds, seed + step)
            for label, answer in networks.items():
                on_step(f"{rate:g} requests a second, {label}", step / len(load.rates))
                for warm in (1, max_batch):
                    answer(range(warm))
                with named_range(f"{label}, {rate:g} requests a second"):
                    served = serve(answer, arrivals.tolist(), max_batch)
                rows.append(_row(label, rate, served, load.slo_ms))
    largest = {
        label: max((row["rate"] for row in rows if row["network"] == label and row["in_time"] >= 0.99), default=None)
        for label in networks
    }
    return {
        "model": name,
        "slo_ms": load.slo_ms,
        "max_batch": max_batch,
        "seconds": seconds,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "rows": rows,
        "largest_rate": largest,
    }


def _row(network: str, rate: float, served: Served, slo_ms: float) -> dict[str, Any]:
    ms = served.latencies * 1e3
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    return {
        "network": network,
        "rate": rate,
        "requests": len(ms),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "in_time": float(np.mean(ms <= slo_ms)),
        "mean_batch": float(np.mean(served.batches)),
    }
