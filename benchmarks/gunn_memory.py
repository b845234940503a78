"""Peak memory and time of a training step of GUNN, with and without Algorithm 1, and of SUNN.

    python benchmarks/gunn_memory.py OUT.json [--model 15] [--batch 16] [--device cpu]

Each contestant runs one forward and backward pass in a process of its own. On the CPU the peak is the resident memory
beyond that before the step; on a GPU what torch allocated. ``saved`` is what autograd keeps between the passes.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

import dsn_models

CONTESTANTS = {
    "sunn": ("sunn", {}),
    "gunn": ("gunn", {"recompute": False}),
    "gunn, algorithm 1": ("gunn", {"recompute": True}),
}


def measure(name: str, model: str, batch: int, device: str) -> dict[str, float]:
    """MiB of one step, and its seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prefix, options = CONTESTANTS[name]
    network = dsn_models.create(f"{prefix}-{model}", **options).to(device).train()
    config = network.config
    images = torch.randn(batch, config.in_channels, config.image_size, config.image_size, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    network(images[:2]).sum().backward()  # gradients and workspaces exist before the step that is measured
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1024
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = time.perf_counter if device == "cuda" else time.process_time  # one thread: a busy CPU does not matter
    started = clock()
    loss = F.cross_entropy(network(images), labels)
    loss.backward()
    loss.item()
    seconds = clock() - started
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1024
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(images)
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = sum(size for pointer, size in saved.items() if pointer not in parameters)
    return {
        "peak_mib": round((peak - before) / 1024, 1),
        "saved_mib": round(kept / 2**20, 1),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="15", help="15, 24, 18 or 18-wide")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.model, options.batch, options.device)))
        return
    document = {
        "schema": 1,
        "command": f"python {' '.join(sys.argv)}",
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "rows": {},
    }
    for name in CONTESTANTS:
        command = [sys.executable, *sys.argv, "--only", name]
        document["rows"][name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(name, document["rows"][name])
    options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
