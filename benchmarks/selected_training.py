"""Time of a training step that computes only what runs, against the share of the layers that run.

``python benchmarks/selected_training.py benchmarks/results/selected-training.json`` on an idle machine. Gates are
forced open at random for the given share of the images. CPU time of forward and backward pass, the least of several.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import dsn_models
from dsn_kernels.measure import machine
from dsn_models.computation import gate_macs
from dsn_models.selection import set_compute

CASES = {"dsn-navon": 32, "skipnet-32-rnn": 128}  # images of a step
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


def step_seconds(model: Any, images: torch.Tensor, gates: dict[str, torch.Tensor], repeats: int) -> float:
    """CPU seconds of one forward and backward pass, the least of ``repeats``."""
    least = float("inf")
    for _ in range(repeats):
        model.zero_grad()
        start = time.process_time()
        outputs = model(images, gates)
        sum(out.square().mean() for out in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
        least = min(least, time.process_time() - start)
    return least


def measure(name: str, batch: int, repeats: int) -> list[dict[str, float]]:
    """A row for each share."""
    torch.manual_seed(0)
    model: Any = dsn_models.create(name).to(memory_format=torch.channels_last).train()
    config, macs = model.config, gate_macs(model)
    images = torch.randn(batch, config.in_channels, config.image_size, config.image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    rows = []
    for share in SHARES:
        gates = {n: (torch.rand(batch, count) < share).to(torch.uint8) for n, count in model.gate_counts.items()}
        row = {"share": share, "macs": macs.executed(gates).mean().item() / macs.dense}
        for compute in ("masked", "selected"):
            set_compute(model, compute)
            row[f"{compute}_s"] = round(step_seconds(model, images, gates, repeats), 4)
        rows.append(row)
        print(name, row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = [
        {"model": name, "batch": batch, "steps": measure(name, batch, arguments.repeats)}
        for name, batch in CASES.items()
    ]
    document = {
        "schema": 1,
        "command": f"python benchmarks/selected_training.py {arguments.out} --repeats {arguments.repeats}",
        **machine.facts(),
        "threads": 1,
        "models": models,
    }
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
