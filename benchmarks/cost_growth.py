"""How latency grows: with the batch, with the area of the image, and with the MACs that the gates let run.

    python benchmarks/cost_growth.py [NAME ...] [--seconds 0.5]

Writes ``benchmarks/results/MACHINE.cost-growth.json`` and draws it as ``docs/cost-growth.svg``. Each line is fitted by
least squares; ``r2`` is the share of the variance that it explains and ``worst`` its greatest relative distance from a
point. An idle machine, please.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cpu import result_file
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import dsn_kernels
import dsn_models
from dsn_kernels.measure import machine
from dsn_kernels.measure.latency import InterleavedTimer
from dsn_kernels.report.plots import Colours, picture, styled

NAMES = ("concat-bc-100", "skipnet-110-rnn")
BATCHES = (1, 2, 4, 8, 16, 32)
SIDES = (32, 48, 64, 80, 96)
OPEN_GATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
DRAWS = 4  # patterns of gates for each share of open ones
AXES = {
    "batch": "images in the batch",
    "area": "area of the image, pixels",
    "macs": "MACs executed per image, millions",
}
DOCS = Path(__file__).resolve().parents[1] / "docs"

Call = Callable[[], object]


def gates_of(fast: Any, batch: int, share: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.rand(batch, count, generator=generator) < share).byte() for n, count in fast.layers.items()}


def calls_of(name: str) -> dict[tuple[str, float], list[Call]]:
    """What to time: by axis and place on it, the calls of each draw."""
    torch.manual_seed(0)
    fast: Any = dsn_kernels.accelerate(dsn_models.create(name))
    calls: dict[tuple[str, float], list[Call]] = {}

    def call(network: Any, batch: int, share: float, seed: int) -> Call:
        config = network.config
        images = torch.randn(batch, config.in_channels, config.image_size, config.image_size)
        gates = gates_of(network, batch, share, seed)
        return lambda: network(images, forced_gates=gates)

    for batch in BATCHES:
        calls["batch", batch] = [call(fast, batch, 1.0, 0)]
    for side in SIDES:
        network = dsn_kernels.accelerate(dsn_models.create(name, image_size=side))
        calls["area", side * side] = [call(network, 1, 1.0, 0)]
    for share in OPEN_GATES:
        draws = range(DRAWS if 0 < share < 1 else 1)
        macs = [fast.macs(gates_of(fast, 1, share, seed)).item() for seed in draws]
        calls["macs", sum(macs) / len(macs) / 1e6] = [call(fast, 1, share, seed) for seed in draws]
    return calls


def fit(points: list[dict[str, float]]) -> dict[str, float]:
    """The line through the points, with its relative error weighted alike at both ends."""
    x, y = (np.array([point[key] for point in points]) for key in ("x", "ms"))
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    line = start + slope * x
    r2 = 1 - ((y - line) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    return {"slope": slope, "start": start, "r2": r2, "worst": float(np.abs(line / y - 1).max())}


def measure(name: str, seconds: float) -> dict[str, Any]:
    calls = calls_of(name)
    timer = InterleavedTimer({f"{axis} {x}": draws for (axis, x), draws in calls.items()})
    timer.run(seconds)
    times = timer.latencies()
    found: dict[str, Any] = {}
    for axis in AXES:
        points = [{"x": x, "ms": times[f"{axis} {x}"].median} for other, x in calls if other == axis]
        found[axis] = {"points": points, **fit(points)}
    return found


def draw(document: dict[str, Any], colours: Colours) -> Figure:
    models = document["models"]
    figure = Figure(figsize=(9.6, 2.8 * len(models)), layout="constrained")
    for row, (name, axes) in zip(figure.subplots(len(models), 3, squeeze=False), models.items(), strict=True):
        for panel, (axis, label) in zip(row, AXES.items(), strict=True):
            styled(panel, colours).set_xlabel(label)
            x, y = ([point[key] for point in axes[axis]["points"]] for key in ("x", "ms"))
            ends = np.array([0, max(x)])
            panel.plot(ends, axes[axis]["start"] + axes[axis]["slope"] * ends, color=colours.open, linewidth=1)
            panel.plot(x, y, "o", color=colours.skipping, markersize=4)
            panel.set(xlim=0, ylim=0, title=f"line within {axes[axis]['worst']:.0%}")
            panel.title.set(color=colours.ink, fontsize=9)
            panel.xaxis.set_major_locator(MaxNLocator(5))
        row[0].set_ylabel(f"{name}\nlatency, ms")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seconds", type=float, default=0.5, help="per point")
    arguments = parser.parse_args()
    document = {
        "machine": machine.describe(),
        "commit": machine.source_commit(),
        "threads": torch.get_num_threads(),
        "models": {name: measure(name, arguments.seconds) for name in arguments.names},
    }
    result_file("cost-growth").write_text(json.dumps(document, indent=1) + "\n")
    (DOCS / "cost-growth.svg").write_bytes(picture(lambda colours: draw(document, colours), "svg"))
    for name, axes in document["models"].items():
        for axis, line in axes.items():
            print(f"{name}: {axis}: r2 {line['r2']:.4f}, worst distance from the line {line['worst']:.1%}")


if __name__ == "__main__":
    main()
