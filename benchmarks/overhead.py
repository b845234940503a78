"""What of a network's time at batch 1 is spent outside the kernels: ``python benchmarks/overhead.py [NAME ...]``.

Writes ``benchmarks/results/MACHINE.overhead.json`` and prints every share; exit status 1 if one exceeds 10 %. Timed in
turns: the model's call; the operator's alone with the same inputs (and torch's stem, where it has one); and the
operator's for a plan that only loads the image and pools it, whose time is the operator's own: dispatch, outputs,
finding the plan, waking the threads. Outside the kernels are the first less the second, plus the third.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from cpu import result_file

import dsn_kernels
import dsn_models
from dsn_kernels import ops
from dsn_kernels.graph import Graph, Linear, Load
from dsn_kernels.measure import machine
from dsn_kernels.measure.latency import InterleavedTimer
from dsn_kernels.runtime import PlanRunner, make_runner

NAMES = ("concat-bc-100", "add-166", "dsn-121", "skipnet-110-rnn", "gaternet-resnet-20", "gunn-15", "resnet-20")
MOST = 0.10


def empty(x: torch.Tensor) -> Graph:
    """A graph that loads x and makes one logit of it."""
    graph, (_, channels, height, width) = Graph(), x.shape
    map = graph.map(channels, height, width)
    graph.add(Load(dst=map, in_channels=channels))
    weight = torch.zeros(1, channels, dtype=torch.float64)
    graph.add(Linear(src=map, in_channels=channels, weight=weight, bias=weight[:, 0]))
    return graph


def run(runner: PlanRunner, x: torch.Tensor, limits: torch.Tensor, forced: torch.Tensor | None) -> None:
    """The operator alone."""
    ops.run_plan(x, runner.weights, limits, forced, runner.own.words, **runner.own.sizes)


def measure(name: str, seconds: float) -> dict[str, float]:
    torch.manual_seed(0)
    fast: Any = dsn_kernels.accelerate(dsn_models.create(name))
    config = fast.config
    images = torch.randn(1, config.in_channels, config.image_size, config.image_size)
    gates = {n: torch.ones(1, count, dtype=torch.uint8) for n, count in fast.layers.items()}
    forced = torch.cat(list(gates.values()), 1) if gates else None
    limits, none = torch.full((fast.graph.gates,), 0.5), torch.empty(0)
    x = images if fast.stem is None else fast.stem(images)
    nothing = make_runner(empty(x), torch.float32, "cpu")

    def kernels() -> None:
        if fast.gater is not None:
            fast.gater(images)
        y = images if fast.stem is None else fast.stem(images)
        run(fast.runner, y, limits, forced)

    calls = {
        "model": lambda: fast(images, forced_gates=gates) if gates else fast(images),
        "operator": kernels,
        "empty": lambda: run(nothing, x, none, None),
    }
    timer = InterleavedTimer(calls)
    timer.run(seconds)
    times = {key: latency.median for key, latency in timer.latencies().items()}
    calls_of_operator = 1 if fast.gater is None else 2
    outside = max(0.0, times["model"] - times["operator"]) + calls_of_operator * times["empty"]
    return {**{f"{key}_ms": value for key, value in times.items()}, "share": outside / times["model"]}


def main() -> int:
    names = sys.argv[1:] or NAMES
    document = {
        "machine": machine.describe(),
        "commit": machine.source_commit(),
        "threads": torch.get_num_threads(),
        "batch": 1,
        "models": {name: measure(name, 1.0) for name in names},
    }
    result_file("overhead").write_text(json.dumps(document, indent=1) + "\n")
    shares = {name: found["share"] for name, found in document["models"].items()}
    for name, share in shares.items():
        print(f"{name}: {share:.1%} outside the kernels")
    return int(max(shares.values()) > MOST)


if __name__ == "__main__":
    sys.exit(main())
