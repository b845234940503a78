"""Predicts the GPU kernels' time: writes the tables of docs/gpu-model.md.

    python -m benchmarks.gpu_model [--model MODEL] [--out FILE.json]

Nothing here is measured. The counts are those of :mod:`.work`, which the host runner confirms one by one; the order of
launches and events is what the host runner is given; the machine is that of :mod:`.predict`, an H200.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dsn_models
from csrc.simt.host_runner import MULTIPROCESSORS, schedule
from dsn_kernels.capture import canonical, capture
from dsn_kernels.graph import count_macs
from dsn_kernels.lower import Plan
from dsn_kernels.lower.cuda import lower

from .map_work import Cuts, Launch
from .predict import DENSE_BYTES, DENSE_NODES, DRAM, NODE, constants, predict
from .work import network_work

BATCHES = (1, 8, 64, 256, 1024)
SKIPPED = (0.0, 0.3, 0.5, 0.7, 1.0)


def random_gates(batch: int, layers: int, skipped: float) -> Tensor:
    return (torch.rand(batch, layers, generator=torch.Generator().manual_seed(0)) >= skipped).byte()


def plan_of(name: str) -> Plan:
    """The plan of a network of the zoo for the GPU kernels, in float16."""
    torch.manual_seed(0)
    return lower(capture(canonical(dsn_models.create(name).eval())).graph, torch.float16)


class Model:
    """A plan of the GPU kernels in float16, and the host runner's schedule of it."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.graph = plan, plan.graph

    def schedule(self, batch: int) -> Any:
        return schedule(self.plan, batch)

    def work(self, schedule: Any, gates: Tensor) -> list[Launch]:
        return network_work(self.plan, gates, Cuts.of(schedule, MULTIPROCESSORS), 2)

    def rows(self, batch: int) -> list[dict[str, Any]]:
        schedule = self.schedule(batch)
        timeline = schedule.timeline()
        rows: list[dict[str, Any]] = []
        dense = max(batch * DENSE_BYTES / DRAM, DENSE_NODES * NODE)
        everything = count_macs(self.graph, torch.ones(1, self.graph.gates, dtype=torch.uint8)).double().mean().item()
        for skipped in SKIPPED:
            gates = random_gates(batch, self.graph.gates, skipped)
            launches = self.work(schedule, gates)
            seconds = predict(timeline, launches)
            saved = 1 - count_macs(self.graph, gates).double().mean().item() / everything
            opened = rows[0]["ms"] if rows else seconds * 1e3
            rows.append(
                {
                    "batch": batch,
                    "skipped": skipped,
                    "mma_macs_per_sample": sum(x.mma for x in launches) * 2048 / batch,
                    "dram_bytes_per_sample": sum(x.dram_bytes for x in launches) / batch,
                    "launches": len(launches),
                    "ms": seconds * 1e3,
                    "dense_ms": dense * 1e3,
                    "ratio": dense / seconds,
                    "realised_fraction": (1 - seconds * 1e3 / opened) / saved if saved else None,
                }
            )
        return rows

    def marginal_us(self, batch: int) -> float:
        """Microseconds of a layer that every sample skips: of all of them together, the branches side by side."""
        schedule = self.schedule(batch)
        timeline = schedule.timeline()
        launches = self.work(schedule, torch.zeros(batch, self.graph.gates, dtype=torch.uint8))
        gated = ("_layer_kernel", "_block_kernel")
        without = [[e for e in entries if not any(name in e[0] for name in gated)] for entries in timeline]
        others = [launch for launch in launches if launch.name not in ("layer", "block")]
        return (predict(timeline, launches) - predict(without, others)) / self.graph.gates * 1e6


def bars(rows: list[dict[str, Any]], marginal_us: float) -> list[dict[str, Any]]:
    """Each bar with what is predicted for it."""

    def pick(field: str, skipped: float, batches: tuple[int, ...]) -> dict[str, float]:
        return {str(r["batch"]): r[field] for r in rows if r["skipped"] == skipped and r["batch"] in batches}

    found = [
        ("gates open, small batches: times the dense run", 1.5, pick("ratio", 0.0, (1, 8))),
        ("gates open, large batches: times the dense run", 1.2, pick("ratio", 0.0, (64, 256, 1024))),
        *(
            (f"realised fraction, {100 * s:.0f} % skipped", 0.85, pick("realised_fraction", s, BATCHES))
            for s in (0.3, 0.5, 0.7)
        ),
    ]
    listed: list[dict[str, Any]] = [
        {"bar": name, "at_least": bar, "predicted": values, "met": [int(b) for b, v in values.items() if v >= bar]}
        for name, bar, values in found
    ]
    met = [1] if marginal_us <= 1 else []
    listed.append({"bar": "a skipped layer, us", "at_most": 1.0, "predicted": {"1": marginal_us}, "met": met})
    return listed


def table(document: dict[str, Any]) -> str:
    """Markdown, as docs/gpu-model.md holds it."""
    lines = ["| batch | gates | tensor-core MACs | main memory | ms | us a sample | dense ms | ratio | realised |"]
    lines.append("|" + "---|" * 9)
    for r in document["rows"]:
        realised = "" if r["realised_fraction"] is None else f"{r['realised_fraction']:.2f}"
        lines.append(
            f"| {r['batch']} | {100 * r['skipped']:.0f} % shut | {r['mma_macs_per_sample'] / 1e6:.0f} M "
            f"| {r['dram_bytes_per_sample'] / 1e6:.1f} MB | {r['ms']:.3f} | {r['ms'] * 1e3 / r['batch']:.2f} "
            f"| {r['dense_ms']:.3f} | {r['ratio']:.1f} | {realised} |"
        )
    return "\n".join(lines) + "\n\n" + bar_table(document["bars"])


def bar_table(bars: list[dict[str, Any]]) -> str:
    """What is asked and predicted, as Markdown."""
    lines = ["| bar | asked | predicted, by batch | |", "|---|---|---|---|"]
    for bar in bars:
        asked = f">= {bar['at_least']}" if "at_least" in bar else f"<= {bar['at_most']}"
        values = ", ".join(f"{b}: {v:.2f}" for b, v in bar["predicted"].items())
        missed = [b for b in bar["predicted"] if int(b) not in bar["met"]]
        verdict = "met" if not missed else "missed" if not bar["met"] else f"missed at {', '.join(missed)}"
        lines.append(f"| {bar['bar']} | {asked} | {values} | {verdict} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="concat-bc-100")
    parser.add_argument("--out", type=Path, help="write the prediction as JSON")
    arguments = parser.parse_args()
    model = Model(plan_of(arguments.model))
    rows = [row for batch in BATCHES for row in model.rows(batch)]
    document = {
        "schema": 1,
        "kind": "prediction, not a measurement: docs/gpu-model.md",
        "model": arguments.model,
        "device": "an H200 of the constants below",
        "dtype": "float16",
        "constants": constants(),
        "rows": rows,
        "bars": bars(rows, model.marginal_us(1)),
    }
    print(table(document))
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=2) + "\n")
