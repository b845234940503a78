"""What a capture costs, and what is won by the planners of the zoo's families.

    python benchmarks/captures.py [NETWORK ...] [--seconds 2]

Of networks that others define, as ``benchmarks/foreign.py`` has them: seconds of CPU that ``accelerate`` with an
example, an image of 224 x 224, takes with its spot check, in a process that has captured nothing before; and in another
process that finds the export in ``cache=``. Of networks of the zoo: seconds of CPU that their planner takes, and that
export takes, without spot check, in a process that has captured another network both ways before; and the time of a run
by export as a multiple of that by the planner, medians of runs in turns. All gates are open. All of
it is float32 on one thread; the CPU seconds of others' networks are medians of three processes.
Leaves ``benchmarks/results/MACHINE.captures.json`` after each network, and takes up where it was stopped: networks that
are in the file are measured again only if they are asked for by name.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu import result_file
from foreign import NETWORKS, SIZE
from torch import nn

import dsn_kernels
import dsn_models
from dsn_kernels.capture import capture_model
from dsn_kernels.measure import machine
from dsn_kernels.measure.latency import InterleavedTimer
from dsn_kernels.runtime import CapturedModel, Target

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import make_foreign  # noqa: E402  (of the source tree)

FOREIGN = (*NETWORKS, "timm:hrnet_w18_small", "timm:ghostnet_100")
ZOO = (
    *("lenet", "resnet-20", "skipnet-38-rnn", "skipnet-38-ff", "gaternet-resnet-20", "shake-shake-64d"),
    *("resnet-164", "densenet-bc-100", "concat-bc-100", "lsn-concat-bc-100", "gunn-15"),
)
FIRST = "densenet-40"  # what a process captures before it is asked
BATCHES = (1, 8)
REPEATS = 3


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of CPU that a call takes, and what it gives."""
    start = time.process_time()
    made = call()
    return time.process_time() - start, made


def measure_foreign(name: str, folder: str) -> dict[str, Any]:
    """One capture, with the export in ``folder`` if it is there."""
    library, _, model_name = name.rpartition(":")
    model = make_foreign(library or "torchvision", model_name).requires_grad_(False)
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    taken, _ = seconds_of(lambda: dsn_kernels.accelerate(model, example=images, backend="cpu", cache=folder))
    return {"seconds": taken}


def by_planner(model: nn.Module) -> Any:
    return dsn_kernels.accelerate(model, backend="cpu", verify=False)


def by_export(model: nn.Module, images: torch.Tensor) -> Any:
    captured, structure, at, _ = capture_model(model, (images,))
    return CapturedModel(captured, (tuple(images.shape[1:]),), at, structure, Target("cpu", torch.float32))


def open_call(fast: Any, images: torch.Tensor) -> Callable[[], Any]:
    """A run with all gates open."""
    if not fast.layers:
        return lambda: fast(images)
    gates = {name: torch.ones(len(images), count, dtype=torch.uint8) for name, count in fast.layers.items()}
    return lambda: fast(images, forced_gates=gates)


def measure_zoo(name: str, seconds: float) -> dict[str, Any]:
    """Both captures of a network, and the times of both results."""
    torch.manual_seed(0)
    first, model = (dsn_models.create(each).eval().requires_grad_(False) for each in (FIRST, name))
    images = [torch.randn(8, m.config.in_channels, *[m.config.image_size] * 2) for m in (first, model)]
    by_planner(first)
    by_export(first, images[0])
    row: dict[str, Any] = {}
    row["planner_seconds"], own = seconds_of(lambda: by_planner(model))
    row["export_seconds"], other = seconds_of(lambda: by_export(model, images[1]))
    for batch in BATCHES:
        x = images[1][:batch]
        timer = InterleavedTimer({"planner": open_call(own, x), "export": open_call(other, x)})
        timer.run(seconds)
        times = {way: latency.median for way, latency in timer.latencies().items()}
        row[f"batch_{batch}"] = {"ms": times, "ratio": times["export"] / times["planner"]}
    return row


def in_another_process(*arguments: str) -> dict[str, Any]:
    """What this script prints, with one thread, when it measures one thing."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, seconds: float) -> tuple[str, dict[str, Any]]:
    """The list that a network belongs to, and its row."""
    if name in ZOO:
        return "zoo", {"network": name, **in_another_process(name, "--one", "--seconds", str(seconds))}
    taken: list[list[float]] = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            taken.append([in_another_process(name, "--one", "--cache", folder)["seconds"] for _ in range(2)])
    fresh, cached = zip(*taken, strict=True)
    row = {"network": name, "fresh_seconds": statistics.median(fresh), "cached_seconds": statistics.median(cached)}
    return "foreign", {**row, "all_seconds": taken}


def keep(path: Path, kind: str, row: dict[str, Any]) -> None:
    """Puts a row into the file, in the order of the lists."""
    document = json.loads(path.read_text()) if path.exists() else {}
    rows = {each["network"]: each for each in [*document.get(kind, []), row]}
    own = {"schema": 1, **machine.facts(), "threads": 1, "command": "captures.py"}
    listed = {key: document.get(key, []) for key in ("foreign", "zoo")}
    listed[kind] = [rows[name] for name in (*FOREIGN, *ZOO) if name in rows]
    path.write_text(json.dumps({**own, **listed}, indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    parser.add_argument("--seconds", type=float, default=2.0, help="of runs, for each network, way and batch")
    parser.add_argument("--one", action="store_true", help="measure in this process and print the figures")
    parser.add_argument("--cache", help="the folder of exports, with --one")
    options = parser.parse_args()
    unknown = [name for name in options.networks if name not in (*FOREIGN, *ZOO)]
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}; expected one of {', '.join((*FOREIGN, *ZOO))}")
    if options.one:
        torch.set_num_threads(1)
        (name,) = options.networks
        found = measure_zoo(name, options.seconds) if name in ZOO else measure_foreign(name, options.cache)
        print(json.dumps(found))
        return 0
    path = result_file("captures")
    known = json.loads(path.read_text()) if path.exists() else {}
    done = {row["network"] for kind in ("foreign", "zoo") for row in known.get(kind, [])}
    for name in options.networks or [name for name in (*FOREIGN, *ZOO) if name not in done]:
        kind, row = measure(name, options.seconds)
        keep(path, kind, row)
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
