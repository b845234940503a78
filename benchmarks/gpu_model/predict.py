"""The time that the GPU kernels take on a machine of the constants below, from exact counts and a roofline."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from csrc.simt.host_runner import MULTIPROCESSORS
from dsn_kernels import _C

from .map_work import ConvPace, Launch

_MACHINE: dict[str, Any] = _C.cuda.MACHINE
CLOCK = _MACHINE["clock"]  # Hz under load
DRAM = 4.3e12  # bytes/s, a device-to-device copy
# of mma.sync per clock and multiprocessor; 790 TFLOP/s of wgmma would be 1,700
MMA_MACS = 2048 / _MACHINE["product_clocks"]
L1_BYTES = _MACHINE["shared_rate"]  # per clock and multiprocessor
L2 = _MACHINE["l2_rate"]  # bytes/s
STEP_CLOCKS = _MACHINE["step_clocks"]  # that a warp waits in a k-step: operands, the last sum, issue of its loads
NODE = _MACHINE["launch_seconds"]  # s, from one kernel of a graph to the next that depends on it
ROUND_TRIP = _MACHINE["trip_clocks"] / CLOCK  # s, to the second-level cache
SHARED = _MACHINE["shared_bytes"] + _MACHINE["reserved_bytes"]  # bytes of a multiprocessor
ALONE = 1 / 4  # of the tensor cores' rate that eight warps reach by themselves: two a scheduler
LAYER_TRIPS = (
    8  # dependent round trips of a layer's block: words, gates, constants, state; sums out, count, sums in, gate
)
BLOCK_TRIPS = 3  # of a resident block, once
OPEN_TRIPS = 4  # of each of its layers that runs: gate, constants, state; sums to the cluster and its barrier
SHUT_TRIPS = 1  # of each that does not: its gate
CONV_TRIPS = 1  # of a convolution's block for a tile: its first pass; and once for the gates' words
LIST_TRIPS = 3  # more where filters are chosen: how many, which, their bias
SPLIT_TRIPS = 2  # more in a cluster that shares the input out: its barriers
SUM_TRIPS = 1 / 4  # and for the sums of each of its blocks, one after the other, from shared memory to shared memory
POOL_TRIPS = 3  # more where it pools: sums out, count, sums in
GATE_TRIPS = 3  # more for each recurrent gate that it decides: embedding, LSTM, word
# Clocks of a resident stage, whose blocks wait for one another and for their own instructions, not for memory:
# behind a convolution: outputs to the other blocks (distributed shared memory answers in about 200) and the cluster's
# barrier, about as much again
CLUSTER_CLOCKS = _MACHINE["cluster_clocks"]
EPILOGUE_CLOCKS = 200  # of it: bias, sum and ReLU, shuffles of the channel sums, weights' barrier
DECIDE_CLOCKS = 1000  # of a gate: sums of the cluster's parts (130), dot products of a warp each (235), forty sums of
# ten terms (140), two exponentials behind one another and two hyperbolic tangents (220), the logit's sum (125), its
# score (60), four barriers of the block (30 each)
JOIN_CLOCKS = 100  # where warps share a product: a barrier, and its parts added up
ENTER_TRIPS = 3  # from one map to the next: stored, loaded, and the shortcut's products
LONELY_BYTES = _MACHINE["l2_rate_alone"]  # per clock from the second-level cache to one multiprocessor
SEGMENT_TRIPS = 2  # of each convolution in a gradual layer: weights, barrier
TRIPS = {"stem": 3, "load": 3, "transition": 10, "head": 10, "store": 3, "path_head": 10, "lists": 3}
DENSE_BYTES = 55e6  # per sample, both branches, every layer's input and output once each: what an unfused run moves
DENSE_NODES = 400  # kernels of that run

RESOURCES = Path(__file__).resolve().parents[1] / "results" / "gpu-kernel-resources.json"

# (kernel, blocks, threads, shared bytes, event waited for, event marked), the latter two -1 if none
Entry = tuple[str, int, int, int, int, int]


@dataclass
class Running:
    """What is left of a launch: seconds until its blocks start, of its longest block, and of the machine."""

    node: float
    latency: float
    busy: float
    share: float  # of the multiprocessors that its blocks occupy

    def done(self) -> bool:
        return self.node <= 0 and self.latency <= 0 and self.busy <= 0


def started(launch: Launch, rate: float) -> Running:
    """``rate``: of the tensor cores' that the blocks of a multiprocessor reach; convolutions have their own."""
    waves = math.ceil(launch.active / MULTIPROCESSORS) * MULTIPROCESSORS / launch.active if launch.active else 0.0
    if launch.conv:
        rate = conv_rate(launch.conv, launch.conv.resident)
    through_shared = launch.l1_bytes + launch.l2_bytes  # loaded from it, stored to it
    clocks = max(launch.mma * 2048 / (MMA_MACS * rate), through_shared / L1_BYTES) / MULTIPROCESSORS * waves
    busy = max(clocks / CLOCK, launch.dram_bytes / DRAM, launch.l2_bytes / L2)
    return Running(NODE, latency(launch), busy, min(1.0, launch.active / MULTIPROCESSORS))


def rate_of(entry: Entry) -> float:
    """Of a kernel by what ptxas and the schedule say of its registers and shared memory."""
    name, _, threads, shared, _, _ = entry
    short = name.split("::")[-1].replace("__nv_", "").replace("__", "").replace("true", "1").replace("false", "0")
    warps = threads // 32
    resident = min(2048 // threads, SHARED // (shared + 1024), 65536 // (registers().get(short, 255) * threads))
    return min(1.0, ALONE * resident * warps / 8)


@lru_cache
def registers() -> dict[str, int]:
    """Of each kernel on sm_90, as `make resources` has committed them."""
    kernels = json.loads(RESOURCES.read_text())["kernels"]
    return {k["name"]: -(-k["registers"] // 8) * 8 for k in kernels if k["arch"] == "90a"}


def conv_rate(pace: ConvPace, blocks: int) -> float:
    """Of the tensor cores' that blocks of a convolution reach: the other warps of a scheduler multiply while one
    waits, and the fullest of the four schedulers ends last."""
    step = pace.step * 2048 / (MMA_MACS / 4)
    fullest = blocks * -(-pace.warps // 4)
    return blocks * pace.warps / 4 / fullest * min(1.0, fullest * step / (STEP_CLOCKS + step))


def conv_tile(launch: Launch) -> float:
    """Seconds that a block of a convolution by itself takes for a tile: its trips and the longest of what it does."""
    pace = launch.conv or ConvPace()
    mma, copied = launch.mma / launch.active, launch.l2_bytes / launch.active
    multiplied = mma * 2048 / (MMA_MACS * conv_rate(pace, 1))
    loops = max(multiplied, (launch.l1_bytes / launch.active + copied) / L1_BYTES, copied / LONELY_BYTES) / CLOCK
    trips: float = CONV_TRIPS + pace.adds + LIST_TRIPS * pace.lists
    if pace.split > 1:
        trips += SPLIT_TRIPS + SUM_TRIPS * pace.split
    if pace.ahead:  # copies of later passes land while this one is multiplied
        waits = max(0, pace.passes - pace.ahead) / pace.ahead * ROUND_TRIP
        return trips * ROUND_TRIP + max(loops, waits)
    return (trips + pace.passes - 1) * ROUND_TRIP + loops


def latency(launch: Launch) -> float:
    """Seconds of a block alone: who am I, what is live, the loops' loads, sums and the next gate."""
    rate = MMA_MACS * ALONE * CLOCK / 2048  # instructions per second
    if launch.name == "block":  # the longest of its samples, each at its own pace
        return BLOCK_TRIPS * ROUND_TRIP + max(
            (opened * OPEN_TRIPS + shut * SHUT_TRIPS) * ROUND_TRIP + mma / rate for opened, shut, mma in launch.chains
        )
    if launch.name == "resident_stage":
        return stage_latency(launch)
    if launch.name == "resident_bottleneck":
        return bottleneck_latency(launch)
    if launch.name == "gradual_layer":
        return max((BLOCK_TRIPS + n * SEGMENT_TRIPS) * ROUND_TRIP + mma / rate for n, _, mma in launch.chains)
    ends = POOL_TRIPS * launch.pools + GATE_TRIPS * launch.gates
    if launch.name not in ("layer", "conv2d"):
        return (TRIPS.get(launch.name, 3) + ends) * ROUND_TRIP
    if not launch.active:
        return ROUND_TRIP
    if launch.name == "conv2d":  # a block walks so many tiles
        return math.ceil(launch.active / launch.blocks) * conv_tile(launch) + (1 + ends) * ROUND_TRIP
    return LAYER_TRIPS * ROUND_TRIP + launch.mma / launch.active / rate


def stage_latency(launch: Launch) -> float:
    """Of residual units: the longest sample, or all of them one behind the other where they fill the machine.

    A convolution takes what its busiest warp multiplies or what its block loads from shared memory, its ends and the
    cluster's barrier, and no less than the next one's weights are under way. To another map a sample goes through
    memory.
    """
    if not launch.active:
        return ROUND_TRIP
    rate = copy_rate(launch)
    convs, decisions = [], []
    for mma, l1_bytes, l2_bytes in launch.maps:
        clocks = max(mma * 2048 / (MMA_MACS * ALONE / 8), l1_bytes / L1_BYTES)
        copied = l2_bytes / rate + ROUND_TRIP
        convs.append(max((clocks + EPILOGUE_CLOCKS + CLUSTER_CLOCKS) / CLOCK, copied))
        decisions.append(max(DECIDE_CLOCKS / CLOCK, copied))
    samples = []
    for counts, gates in launch.paths:
        units = sum(counts) // 2
        shut = max(0, gates - units)
        seconds = sum(n * conv for n, conv in zip(counts, convs, strict=True))
        seconds += min(units, gates) * DECIDE_CLOCKS / CLOCK + shut * sum(decisions) / len(decisions)
        entries = len(convs) - 1
        seconds += entries * (ENTER_TRIPS * ROUND_TRIP + (EPILOGUE_CLOCKS + 2 * CLUSTER_CLOCKS) / CLOCK)
        samples.append(seconds)
    return longest_walk(launch, samples, (BLOCK_TRIPS + GATE_TRIPS * launch.gates) * ROUND_TRIP)


def bottleneck_latency(launch: Launch) -> float:
    """Of bottleneck units: a unit takes what its three convolutions do, one behind the other, with the cluster's
    barrier behind the first; no less than its weights take to come, and a trip for every two of them, which are under
    way together."""
    rate, samples = copy_rate(launch), []
    for walk in launch.walks:
        seconds = 0.0
        for first in range(0, len(walk), 3):
            clocks, copied = float(CLUSTER_CLOCKS), 0
            for mma, l1_bytes, l2_bytes in walk[first : first + 3]:
                clocks += max(mma * 2048 / (MMA_MACS * ALONE / 8), l1_bytes / L1_BYTES)
                clocks += EPILOGUE_CLOCKS + JOIN_CLOCKS
                copied += l2_bytes
            seconds += max(clocks / CLOCK, copied / rate, 1.5 * ROUND_TRIP)
        samples.append(seconds)
    return longest_walk(launch, samples, (BLOCK_TRIPS + LIST_TRIPS) * ROUND_TRIP)


def blocks_at_once(launch: Launch) -> int:
    """Of clusters, a block to a multiprocessor."""
    return min(launch.active, MULTIPROCESSORS // launch.cluster * launch.cluster)


def copy_rate(launch: Launch) -> float:
    """Bytes/s from the second-level cache to a block that runs beside the others."""
    return min(LONELY_BYTES * CLOCK, L2 / blocks_at_once(launch))


def longest_walk(launch: Launch, samples: list[float], ends: float) -> float:
    """Seconds of the longest sample, or of all of them one behind the other where they fill the machine."""
    together = blocks_at_once(launch) // launch.cluster
    return max(max(samples) + ends, (sum(samples) + len(samples) * ends) / together)


def predict(timeline: list[list[Entry]], launches: list[Launch]) -> float:
    """Seconds of a replay: each stream in turn, events between them, the machine shared where it does not suffice."""
    work = [iter([x for x in launches if x.stream == s]) for s in range(len(timeline))]
    at = [0] * len(timeline)
    running: dict[int, Running] = {}
    passed: set[int] = set()
    now = 0.0
    while True:
        for _ in timeline:  # an event that one stream marks may let another on
            for s, entries in enumerate(timeline):
                while s not in running and at[s] < len(entries):
                    _, blocks, _, _, waits_for, marks = entry = entries[at[s]]
                    if waits_for >= 0 and waits_for not in passed:
                        break
                    at[s] += 1
                    if marks >= 0:
                        passed.add(marks)
                    elif waits_for < 0:
                        launch = next(work[s])
                        assert launch.blocks in (0, blocks), "the counts are of other launches than the schedule's"
                        running[s] = started(launch, rate_of(entry))
        if not running:
            return now
        computing = [r for r in running.values() if r.node <= 0 and r.busy > 0]
        slower = max(1.0, sum(r.share for r in computing))
        steps = [r.node for r in running.values() if r.node > 0]
        steps += [r.busy * slower for r in computing]
        steps += [r.latency for r in running.values() if r.node <= 0 and r.latency > 0]
        step = min(steps)
        now += step
        for r in running.values():
            if r.node > 0:
                r.node -= step
            else:
                r.latency -= step
                r.busy -= step / slower
        for r in running.values():  # what is left of rounding is nothing
            r.node, r.latency, r.busy = (0.0 if v < 1e-12 else v for v in (r.node, r.latency, r.busy))
        running = {s: r for s, r in running.items() if not r.done()}


def constants() -> dict[str, Any]:
    """Of the machine and of the dense run."""
    names = (
        "CLOCK DRAM MMA_MACS L1_BYTES SHARED NODE ROUND_TRIP ALONE LAYER_TRIPS BLOCK_TRIPS OPEN_TRIPS SHUT_TRIPS TRIPS"
    )
    names += " CONV_TRIPS LIST_TRIPS SPLIT_TRIPS SUM_TRIPS STEP_CLOCKS LONELY_BYTES"
    names += " POOL_TRIPS GATE_TRIPS SEGMENT_TRIPS CLUSTER_CLOCKS EPILOGUE_CLOCKS DECIDE_CLOCKS"
    names += " JOIN_CLOCKS ENTER_TRIPS"
    names += " L2 DENSE_BYTES DENSE_NODES"
    return {name.lower(): globals()[name] for name in names.split()} | {"multiprocessors": MULTIPROCESSORS}
