"""How close ``dsn sweep --budget latency=..`` lands to its budget on images that it has not seen.

    python benchmarks/budgets.py CKPT OUT.json [--data DIR] [--kind KIND] [--shares 0.95,0.9,0.8,0.7] [--images 2000]

One half of the images is swept once. For each share s the budget is s times the latency at the network's own
thresholds, picked on that half and timed on the other, on one thread. All times are in turns with every gate open, and
in milliseconds at the speed that the machine had when it was first timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from dsn_kernels.cli.inputs import load_checkpoint, read_test_data
from dsn_kernels.measure import machine
from dsn_kernels.tuning.budget import TOLERANCE, Budget
from dsn_kernels.tuning.pick import picked
from dsn_kernels.tuning.sweeper import Sweeper, SweepSettings


def landed(sweeper: Sweeper, points: list[Any], share: float, own_ms: float) -> dict[str, Any]:
    budget = Budget(f"latency={share * own_ms:.4f}ms")
    found = picked(sweeper, points, budget)
    fresh = found["check"]["cost"]
    row: dict[str, Any] = {
        "share_of_own": share,
        "limit_ms": budget.limit,
        "picked_ms": found["pick"]["cost"],
        "fresh_ms": fresh,
    }
    row |= {"over_budget": fresh / budget.limit - 1, "kept": found["kept"], "thresholds": found["thresholds"]}
    row |= {"layer_thresholds": found["layer_thresholds"], "next_better": found["next_better"]}
    row |= {"macs_picked": found["pick"]["macs"]["mean"], "macs_fresh": found["check"]["macs"]["mean"]}
    return row | {"mean_error_fresh": found["check"]["mean_error"], "mean_error_open": found["check_open_error"]}


def _command() -> str:
    """What was called, files without their folders."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    return " ".join(["python benchmarks/budgets.py", *words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--kind")
    parser.add_argument("--task")
    parser.add_argument("--shares", default="0.95,0.9,0.8,0.7")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    model, metadata = load_checkpoint(arguments.checkpoint)
    options = (arguments.kind, arguments.data, arguments.task, arguments.images)
    settings = SweepSettings(steps=arguments.steps, batch=arguments.batch, seconds=arguments.seconds)
    sweeper = Sweeper(model, read_test_data(model, metadata, *options), settings, lambda text, done: None)
    torch.set_num_threads(1)
    points = sweeper.grid()
    sweeper.fit(sweeper.time([sweeper.opened, *points[:: max(1, len(points) // 8)]], sweeper.pick))
    own, rows = sweeper.at(sweeper.own), []
    for share in map(float, arguments.shares.split(",")):
        own_ms = sweeper.measure(own, sweeper.pick)
        rows.append(landed(sweeper, points, share, own_ms))
        row = rows[-1]
        print(f"{share:.2f} of {own_ms:.3f} ms: {row['fresh_ms']:.3f} ms on fresh images, {row['over_budget']:+.1%}")
    document = {
        "schema": 1,
        "command": _command(),
        "model": Path(arguments.checkpoint).stem,
        "images": {"pick": len(sweeper.pick.images), "check": len(sweeper.check.images)},
        "batch": arguments.batch,
        "threads": torch.get_num_threads(),
        **machine.facts(),
        "tolerance": TOLERANCE,
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
