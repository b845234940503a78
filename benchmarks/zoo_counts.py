"""Every model of the zoo at its true size: the meter against the kernels' counters.

    python benchmarks/zoo_counts.py OUT.json [MODEL ...]

One random image through each, each gate open, then shut with probability 0.3, 0.5 and 0.7 (a network without gates
once). Exit status 1 if ``measure.flops``, the sum of its layers, the formula ``macs(gates)`` or torch's counter differs
from what the kernels counted, by one MAC or more; a few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import dsn_kernels
import dsn_models
from dsn_kernels.capture import networks
from dsn_kernels.measure import flops, machine
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.networks import count_dense, image_shape, run
from dsn_models import zoo

GATES = ("open", "random:0.3", "random:0.5", "random:0.7")


@torch.inference_mode()
def counts(name: str) -> dict[str, Any]:
    """MACs of a model, dense and under each of ``GATES``, and whether all ways to count them agree."""
    torch.manual_seed(0)
    model: Any = dsn_models.create(name).eval()
    dense = count_dense(model)
    fast: Any = dsn_kernels.accelerate(model)
    images = torch.randn(1, *image_shape(model.config))
    generator = torch.Generator().manual_seed(0)
    executed, equal = {}, fast.dense_macs == dense
    for setting in GATES if fast.layers else GATES[:1]:
        gates = GateSetting(setting).draw(model.config, fast.layers, 1, generator) if fast.layers else None
        with FlopCounterMode(display=False) as counter:
            run(fast, images, gates)
        counted = int(fast.last_macs.sum())
        meter = flops(fast)
        by_layers = sum(int(layer.executed.sum()) for layer in meter.layers)
        others = (int(meter.executed.sum()), by_layers, int(fast.macs(gates or {}).sum()))
        equal = equal and {counted} == {*others, counter.get_total_flops() // 2}
        executed[setting] = counted
    return {"model": name, "gates": sum(fast.layers.values()), "dense": dense, "executed": executed, "equal": equal}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="*")
    options = parser.parse_args()
    facts = machine.facts()
    rows = []
    planned = [config.name for parts in zoo.FAMILIES.values() if parts.module in networks() for config, _ in parts.zoo]
    for name in options.models or planned:
        rows.append(counts(name))
        print(f"{name}: {rows[-1]['executed']}{'' if rows[-1]['equal'] else ' DIFFER'}", flush=True)
    options.out.write_text(json.dumps({"schema": 1, "batch": 1, **facts, "rows": rows}, indent=1) + "\n")
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
