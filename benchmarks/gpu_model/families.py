"""Predicts what the GPU kernels gain for networks that skip units or filters and for gradually updated ones.

    python -m benchmarks.gpu_model.families [--out FILE.json]

Nothing here is measured: counts and machine are those of this folder. What it is held against is credited
generously: each convolution of the dense network is one kernel of a graph with batch norm, ReLU and sum in it, and
takes the longest of three round trips to the second-level cache, its bytes through main memory, and its
multiply-accumulates at 45 % of wgmma's rate. Eager PyTorch is credited with 5 us an operator.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dsn_models
from dsn_kernels import Accelerated, Target
from dsn_kernels.capture import canonical, capture
from dsn_kernels.graph import Conv2d, Graph, Linear, Map, Stem
from dsn_kernels.lower import Plan

from ..gpu_bars import FAMILIES, REALISED, TIMES_EAGER, WITHIN, Family
from . import predict
from .model import Model, bar_table, random_gates

DENSE_RATE = 0.45  # of 1,700 multiply-accumulates per clock and multiprocessor
WGMMA_MACS = 1700
DENSE_TRIPS = 3  # dependent round trips of a kernel: input, the passes behind the first, output
EAGER = 5e-6  # s, from one operator of eager PyTorch to the next


class _Operators(TorchDispatchMode):
    """Counts the operators that start a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def eager_operators(model: nn.Module) -> int:
    config: Any = model.config
    image = torch.zeros(1, config.in_channels, config.image_size, config.image_size, device="meta")
    with _Operators() as operators, torch.no_grad():
        copy.deepcopy(model).to("meta")(image)
    return operators.count


def dense_seconds(graph: Graph, batch: int) -> float:
    """Of a dense network's convolutions, one behind the other."""
    seconds = 0.0
    for node in graph.nodes:
        if not isinstance(node, (Conv2d, Stem, Linear)):
            continue
        to = graph.maps[node.dst] if node.dst >= 0 else Map(0, 1, 1)
        source = graph.maps[node.src] if node.dst >= 0 and node.src >= 0 else to
        weights = node.weight.numel()
        macs = to.pixels * weights
        moved = node.in_channels * source.pixels + node.out_channels * to.pixels
        if isinstance(node, Conv2d) and node.accumulate:
            moved += node.out_channels * to.pixels
        rate = DENSE_RATE * WGMMA_MACS * predict.MULTIPROCESSORS * predict.CLOCK
        least = DENSE_TRIPS * predict.ROUND_TRIP
        seconds += predict.NODE + max(least, 2 * (batch * moved + weights) / predict.DRAM, batch * macs / rate)
    return seconds


def stem_seconds(network: Accelerated, batch: int) -> float:
    """Of an ImageNet stem, which torch runs in both: convolution, batch norm, ReLU and pool, each through memory."""
    if network.stem is None:
        return 0.0
    pooled = network.graph.maps[0]
    wide = 4 * pooled.channels * pooled.pixels  # before the pool
    return 4 * predict.NODE + 2 * batch * 6 * wide / predict.DRAM


def our_seconds(plans: list[Plan], gates: Tensor) -> float:
    """Of a gater without gates of its own, if there is one, and the network behind it."""
    seconds = 0.0
    for plan in plans:
        model = Model(plan)
        schedule = model.schedule(len(gates))
        seconds += predict.predict(schedule.timeline(), model.work(schedule, gates[:, : plan.graph.gates]))
    return seconds


def mean_macs(network: Accelerated, gates: Tensor) -> float:
    """For each image; ``gates`` [B, L] are those of all names, one behind the other."""
    parts = gates.split(list(network.layers.values()), 1) if network.layers else ()
    return network.macs(dict(zip(network.layers, parts, strict=True))).double().mean().item()


def rows_of(family: Family) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model: Any = dsn_models.create(family.name, **family.options).eval()
    network = Accelerated(model, Target("simt", torch.float16))
    plans = [part.runner.plan for part in network.parts.values()]
    against = dsn_models.create(family.against).eval() if family.against else model.dense_equivalent()
    dense = capture(canonical(against)).graph
    rows = []
    for batch in family.batches:
        kinds = {"open": torch.ones(batch, network.graph.gates, dtype=torch.uint8)}
        if family.skipped:
            kinds["different"] = random_gates(batch, network.graph.gates, family.skipped)
            kinds["equal"] = kinds["different"][:1].expand(batch, -1)
        extra = stem_seconds(network, batch)
        baseline = dense_seconds(dense, batch) + extra
        opened = 0.0
        for kind, gates in kinds.items():
            seconds = our_seconds(plans, gates) + extra
            opened = opened or seconds
            saved = 1 - mean_macs(network, gates) / mean_macs(network, kinds["open"])
            rows.append(
                {
                    "model": family.name,
                    "batch": batch,
                    "gates": kind,
                    "skipped": family.skipped if kind != "open" else 0.0,
                    "ms": seconds * 1e3,
                    "dense_ms": baseline * 1e3,
                    "ratio": baseline / seconds,
                    "realised_fraction": (1 - seconds / opened) / saved if kind != "open" else None,
                }
            )
        if family.against:
            rows[-1]["eager_ms"] = eager_operators(model) * EAGER * 1e3
    return rows


def bars_of(family: Family, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each bar with what is predicted for it, by batch."""

    def pick(kind: str, value: Any) -> dict[str, float]:
        return {str(r["batch"]): value(r) for r in rows if r["gates"] == kind}

    kind = "different" if family.skipped else "open"
    percent = f", {100 * family.skipped:.0f} % skipped" if family.skipped else ""
    beside = f"dense {family.against}" if family.against else "the dense run"
    found = [(f"{family.name}{percent}: times {beside}", family.at_least, pick(kind, lambda r: r["ratio"]))]
    if family.skipped:
        found.append(
            (f"{family.name}{percent}: realised fraction", REALISED, pick(kind, lambda r: r["realised_fraction"]))
        )
        equal = pick("equal", lambda r: r["ms"])
        found.append(
            (
                f"{family.name}: equal patterns' time over different ones'",
                1 / WITHIN,
                pick(kind, lambda r: equal[str(r["batch"])] / r["ms"]),
            )
        )
    else:
        found.append(
            (f"{family.name}: times eager PyTorch", TIMES_EAGER, pick(kind, lambda r: r["eager_ms"] / r["ms"]))
        )
    return [
        {
            "bar": name,
            "at_least": round(bar, 2),
            "predicted": values,
            "met": [int(b) for b in values if values[b] >= bar],
        }
        for name, bar, values in found
    ]


def table(document: dict[str, Any]) -> str:
    """Markdown, as docs/gpu-model.md holds it."""
    lines = ["| network | batch | gates | ms | dense ms | ratio | realised |", "|" + "---|" * 7]
    for r in document["rows"]:
        realised = "" if r["realised_fraction"] is None else f"{r['realised_fraction']:.2f}"
        gates = r["gates"] if r["gates"] == "open" else f"{100 * r['skipped']:.0f} % shut, {r['gates']}"
        lines.append(
            f"| {r['model']} | {r['batch']} | {gates} | {r['ms']:.3f} | {r['dense_ms']:.3f} | {r['ratio']:.2f} "
            f"| {realised} |"
        )
    return "\n".join(lines) + "\n\n" + bar_table(document["bars"])


def constants() -> dict[str, Any]:
    """Of the machine, of the dense run and of eager PyTorch."""
    return predict.constants() | {
        "dense_rate": DENSE_RATE,
        "dense_trips": DENSE_TRIPS,
        "wgmma_macs": WGMMA_MACS,
        "eager": EAGER,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the prediction as JSON")
    arguments = parser.parse_args()
    rows, bars = [], []
    for family in FAMILIES:
        own = rows_of(family)
        rows += own
        bars += bars_of(family, own)
        document = {
            "schema": 1,
            "kind": "prediction, not a measurement: docs/gpu-model.md",
            "device": "an H200 of the constants below",
            "dtype": "float16",
            "constants": constants(),
            "rows": rows,
            "bars": bars,
        }
        if arguments.out:
            arguments.out.write_text(json.dumps(document, indent=2) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
