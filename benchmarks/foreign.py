"""Networks that others define, as they are and with gates, against the runtimes that a user would take instead.

    python benchmarks/foreign.py [NETWORK ...] [--batch 1,8] [--seconds 20] [--write]

Of each network (torchvision's unless its name says ``timm:`` or ``pytorchcv:``), with random weights, on images of
224 x 224: milliseconds of the network accelerated, of ONNX Runtime and of OpenVINO, all float32, timed in turns; and,
where it has residual units, of the same network gated, with all gates open and with 40 % of them shut at random for
each image. ``speed`` is the better runtime's time over ours; ``realised`` the part of the saved MACs that the clock
shows.
``--write`` leaves ``benchmarks/results/MACHINE.foreign.json``; networks that are not asked for keep their figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from cpu import result_file

import dsn_kernels
import dsn_models
from dsn_kernels.measure import baselines, machine
from dsn_kernels.measure.latency import InterleavedTimer
from dsn_models.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import make_foreign  # noqa: E402  (of the source tree)

NETWORKS = ("densenet121", "resnet50", "resnext50_32x4d", "regnet_x_400mf", "mobilenet_v2", "efficientnet_b0")
PEERS = ("onnxruntime", "openvino")
SIZE, SHUT = 224, 0.4


def measure(name: str, batch: int, seconds: float) -> dict[str, Any]:
    """Milliseconds and ratios of one network at one batch size."""
    library, _, model_name = name.rpartition(":")
    model = make_foreign(library or "torchvision", model_name).requires_grad_(False)
    images = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    fast = dsn_kernels.accelerate(model, example=images, backend="cpu")
    calls: dict[str, Any] = {"dense": lambda: fast(images)}
    peers, missing = baselines.build_all(PEERS, model, images)
    calls |= {peer: (lambda call=call: call(images)) for peer, call in peers.items()}
    row: dict[str, Any] = {"network": name, "batch": batch, "macs": fast.dense_macs, "missing": missing}
    try:
        gated, report = dsn_models.gate(model, images)
    except UserError as reason:
        row["gates"] = str(reason)
    else:
        skipping = dsn_kernels.accelerate(gated.eval(), example=images, backend="cpu")
        patterns = {"open": _gates(skipping.layers, batch, 0.0), "shut": _gates(skipping.layers, batch, SHUT)}
        row["gated_share"] = report.share
        for pattern, gates in patterns.items():
            calls[pattern] = lambda gates=gates: skipping(images, forced_gates=gates)
            calls[pattern]()
            row[f"macs_{pattern}"] = float(skipping.last_macs.double().mean())
    timer = InterleavedTimer(calls)
    timer.run(seconds)
    times = {call: latency.median for call, latency in timer.latencies().items()}
    best = min(times[peer] for peer in peers)
    row["ms"] = times
    row["speed"] = {call: best / ms for call, ms in times.items() if call not in peers}
    if "shut" in times:
        saved = 1 - row["macs_shut"] / row["macs_open"]
        row["gain"] = times["open"] / times["shut"]
        row["realised"] = (1 - times["shut"] / times["open"]) / saved
    return row


def _gates(layers: dict[str, int], batch: int, shut: float) -> dict[str, torch.Tensor]:
    """Of each image, the same number of gates shut, at random ones."""
    generator = torch.Generator().manual_seed(1)
    count = sum(layers.values())
    order = torch.rand(batch, count, generator=generator).argsort(1)
    joined = (order >= round(shut * count)).to(torch.uint8)
    return dict(zip(layers, joined.split(list(layers.values()), 1), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", default="1,8", help="sizes, by commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each callable")
    parser.add_argument("--write", action="store_true", help="leave the figures in benchmarks/results")
    options = parser.parse_args()
    path = result_file("foreign")
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        for batch in map(int, options.batch.split(",")):
            row = measure(name, batch, options.seconds)
            rows.append(row)
            times = ", ".join(f"{call} {ms:.1f} ms" for call, ms in row["ms"].items())
            gains = f", {row['gain']:.2f}x with 40 % shut, realised {row['realised']:.2f}" if "gain" in row else ""
            print(f"{name} at batch {batch}: {times}; {row['speed']['dense']:.2f}x{gains}", flush=True)
            if options.write:
                known = json.loads(path.read_text())["rows"] if path.exists() else []
                fresh = {(r["network"], r["batch"]) for r in rows}
                kept = [r for r in known if (r["network"], r["batch"]) not in fresh]
                listed = sorted(kept + rows, key=lambda r: (r["network"], r["batch"]))
                document = {"schema": 1, **machine.facts(), "command": " ".join(sys.argv), "rows": listed}
                path.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
