"""Predicts the GPU kernels' time from exact counts and a roofline: prints the tables of docs/gpu-model.md.

    python benchmarks/gpu_model.py [MODEL]

Nothing here is measured. The counts are those of dsn_kernels.measure.gpu_work, which the host runner confirms one by
one; the machine is the H200 of the constants below.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import dsn_models
from dsn_kernels.measure.gpu_work import Launch, network_work
from dsn_kernels.nn.cuda_packing import ELEMENTS, pack_for_cuda
from dsn_kernels.nn.plan_runner import MULTIPROCESSORS, SHARED_BYTES, load_simt
from dsn_kernels.nn.planning import plan_dual_skipping
from dsn_kernels.ops.network import Plan

CLOCK = 1.75e9  # Hz under load
DRAM = 4.3e12  # bytes/s, a device-to-device copy
MMA_MACS = 1280  # of mma.sync per clock and multiprocessor; 790 TFLOP/s of wgmma would be 1,700
L1_BYTES = 128  # per clock and multiprocessor
NODE = 1.3e-6  # s, from one kernel of a graph to the next that depends on it
ROUND_TRIP = 0.4e-6  # s, to the second-level cache
DENSE_BYTES = 55e6  # per sample, both branches, every layer's input and output once each: what an unfused run moves
DENSE_NODES = 400  # kernels of that run
LAUNCH_STEPS = {"stem": 3, "load": 3, "transition": 10, "head": 10, "store": 3}  # dependent round trips


def predict(launches: list[Launch], streams: int) -> float:
    """Seconds of a replay: the longest of the streams, each having its share of the machine."""
    total = [0.0] * streams
    for launch in launches:
        waves = (
            -(-launch.active // MULTIPROCESSORS) / max(launch.active / MULTIPROCESSORS, 1e-9) if launch.active else 0
        )
        clocks = max(launch.mma * 2048 / MMA_MACS, launch.l1_bytes / L1_BYTES) / MULTIPROCESSORS * waves
        busy = max(clocks / CLOCK, launch.dram_bytes / DRAM) * streams
        total[launch.stream] += NODE + max(busy, latency(launch))
    return max(total) + NODE


def latency(launch: Launch) -> float:
    """Seconds of a block alone: who am I, what is live, the loops' loads, sums and the next gate."""
    if launch.name != "layer":
        return LAUNCH_STEPS[launch.name] * ROUND_TRIP
    if not launch.active:
        return ROUND_TRIP
    loops = (
        launch.mma * 2048 / launch.active / (MMA_MACS / 4) / CLOCK
    )  # two warps a scheduler reach a quarter of the rate
    return 8 * ROUND_TRIP + loops


def random_gates(batch: int, layers: int, skipped: float) -> Tensor:
    return (torch.rand(batch, layers, generator=torch.Generator().manual_seed(0)) >= skipped).byte()


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "concat-bc-100"
    torch.manual_seed(0)
    cpu_plan, weights = plan_dual_skipping(dsn_models.create(name).eval())
    plan, _ = pack_for_cuda(cpu_plan, weights, torch.float16)
    streams = [0 if b < len(plan.buffers) // 2 else 1 for b in range(len(plan.buffers))]
    print(
        "| batch | gates | tensor-core MACs | bytes of main memory | ms | us a sample | us dense | ratio | realised |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for batch in (1, 8, 64, 256, 1024):
        opened = 0.0
        for skipped in (0.0, 0.3, 0.5, 0.7, 1.0):
            gates = random_gates(batch, plan.gates, skipped)
            launches = network_work(plan, gates, tiles_of(plan, batch), streams, 2)
            seconds = predict(launches, 2)
            opened = opened or seconds
            macs = plan.macs(gates).double().mean().item()
            saved = 1 - macs / plan.macs(torch.ones_like(gates)).double().mean().item()
            realised = f"{(1 - seconds / opened) / saved:.2f}" if saved else ""
            dense = max(batch * DENSE_BYTES / DRAM, DENSE_NODES * NODE)
            mma, moved = sum(x.mma for x in launches) * 2048, sum(x.dram_bytes for x in launches)
            print(
                f"| {batch} | {100 * skipped:.0f} % shut | {mma / batch / 1e6:.0f} M | {moved / batch / 1e6:.1f} MB "
                f"| {seconds * 1e3:.3f} | {seconds / batch * 1e6:.2f} | {dense / batch * 1e6:.1f} "
                f"| {dense / seconds:.1f} | {realised} |"
            )


def tiles_of(plan: Plan, batch: int) -> list[tuple[int, int, int, int]]:
    code = [tuple(vars(step).values()) for step in plan.code]
    element = ELEMENTS[torch.float16]
    network = load_simt().Network(
        plan.buffers, code, plan.gates, plan.logits, element, batch, MULTIPROCESSORS, SHARED_BYTES
    )
    return [tuple(tile[:4]) for tile in network.tiles]


if __name__ == "__main__":
    main()
