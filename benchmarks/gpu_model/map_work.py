"""What the GPU kernels do for the instructions on maps, each by itself: convolutions, pools, gates of units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dsn_kernels import _C
from dsn_kernels.graph import Conv2d, Graph, Node, PoolSums, Reads, Subsample, Upsample

ROWS = 16  # pixels of an m16n8k16 instruction
GROUP: int = _C.cuda.GROUP
_STEP: int = _C.cuda.STEP
_STRIP = 64  # pixels of a block of the kernels that go over a map channel by channel
_THREADS = 256  # of a block of a convolution
_WARP_ROWS = 32  # pixels that a warp of a convolution multiplies


@dataclass(frozen=True)
class ConvPace:
    """How a block of a convolution goes about a tile.

    Attributes:
        warps: that multiply.
        step: instructions of a warp's k-step, each with sums of its own.
        passes: over the input.
        ahead: passes whose copies are under way while one is multiplied; 0: they are gathered, each in its turn.
        resident: blocks of a multiprocessor.
        split: blocks of a cluster that share a tile's input out.
        adds: trips to what the results are added to.
        lists: the block reads which channels are chosen.
    """

    warps: int = 8
    step: int = 8
    passes: int = 1
    ahead: int = 1
    resident: int = 1
    split: int = 1
    adds: int = 0
    lists: bool = False


@dataclass
class Launch:
    """One kernel for a batch.

    Attributes:
        name: stem, layer, block, transition, head, load, store, conv2d, resident_stage, resident_bottleneck,
            gradual_layer, lists, groups, or the instruction's.
        stream: of the plan.
        blocks: of the grid.
        active: blocks that have a sample; of a convolution, whose blocks walk them: tiles of the samples that run.
        mma: m16n8k16 instructions, of 2048 multiply-accumulates each; 0 of float32.
        l1_bytes: what warps load in the loops around them, from shared memory or through the first-level cache.
        l2_bytes: what blocks of a convolution copy into their shared memory, weights, inputs and what they add to, and
            what they read of the sums of others.
        dram_bytes: of states and images read and written; weights stay in the caches.
        chains: of a block, for each sample: layers that ran, layers that did not, instructions of its longest tile; of
            a gradual layer: phases of a segment, 0, instructions of a block.
        cluster: blocks of a sample, of a launch for residual units.
        maps: of such units, for one convolution of each map: instructions of the busiest warp, and bytes that a block
            loads from shared memory and that it copies into it.
        paths: of such units, for each sample: convolutions on each map, gates that are decided on the way.
        walks: of bottleneck units, for each sample, of each convolution in order: instructions of the busiest warp, and
            bytes that a block loads from shared memory and that it copies into it.
        gates: that the last block of a sample decides behind a sum over its channels; recurrent ones only.
        pools: leaves a pooled vector.
        conv: of a convolution, how its blocks go about a tile.
    """

    name: str
    stream: int
    blocks: int = 0
    active: int = 0
    mma: int = 0
    l1_bytes: int = 0
    l2_bytes: int = 0
    dram_bytes: int = 0
    chains: list[tuple[int, int, int]] = field(default_factory=list)
    gates: int = 0
    pools: bool = False
    cluster: int = 1
    conv: ConvPace | None = None
    maps: list[tuple[int, int, int]] = field(default_factory=list)
    paths: list[tuple[tuple[int, ...], int]] = field(default_factory=list)
    walks: list[list[tuple[int, int, int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Cuts:
    """How the schedule cuts a plan's instructions.

    Attributes:
        layers: of each layer of each dense block: (rows, columns) of its tiles, how many there are down and across, and
            1 if one launch runs the whole block.
        convs: of each convolution: rows, columns, down, across, block_columns, column_blocks, warp_tiles, warps_down,
            depth, blocks of a multiprocessor, tiles side by side that a block walks (0: any), 1 if chosen inputs are
            read in their places, slots of shared memory, blocks that share a tile's input out, more than 0 if what
            results are added to is copied beside the input, samples of a tile.
        stages: of residual units that one launch does: first instruction, one past its last, and of each map: buffer,
            units, rows of a block, blocks over rows and over columns, tiles of a warp each way, warps that share a
            product.
        gradual: of each gradual layer: first instruction, one past its last, rows of a block, blocks of a sample.
        bottlenecks: of bottleneck units that one launch does: first instruction, one past its last, rows of a block,
            blocks of a sample.
        streams: of each buffer.
        multiprocessors: of the device.
        lists: launches that list what masks chose.
        groups: launches that put samples with equal masks side by side.
        gates_have_launches: gates of units are not decided by what writes their input.
    """

    layers: Sequence[Sequence[int]]
    convs: Sequence[Sequence[int]]
    stages: Sequence[tuple[int, int, Sequence[Sequence[int]]]]
    gradual: Sequence[Sequence[int]]
    bottlenecks: Sequence[Sequence[int]]
    streams: Sequence[int]
    multiprocessors: int
    lists: int = 0
    groups: int = 0
    gates_have_launches: bool = False

    @staticmethod
    def of(network: Any, multiprocessors: int) -> Cuts:
        """Of a schedule of the host runner."""
        kernels = [entry[0] for stream in network.timeline() for entry in stream]
        return Cuts(
            [tile[:5] for tile in network.tiles],
            network.conv_tiles,
            network.stage_runs,
            network.gradual_runs,
            network.bottleneck_runs,
            network.stream_of_buffer,
            multiprocessors,
            sum("filter_lists_kernel" in kernel for kernel in kernels),
            sum("first_equal_kernel" in kernel or "place_kernel" in kernel for kernel in kernels),
            any("unit_gate_kernel" in kernel for kernel in kernels),
        )


def up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def nearly_all(channels: int) -> int:
    """As many of a mask's channels as make a convolution compute all of them."""
    return channels - channels // 8


def conv2d(
    graph: Graph,
    node: Conv2d,
    reads: Reads,
    cut: Sequence[int],
    multiprocessors: int,
    runs: list[int],
    inputs: list[int],
    filters: list[int],
    element: int,
    launch: Launch,
) -> None:
    """Adds a convolution of samples that run (0 or 1), read ``inputs`` channels and have ``filters`` on.

    A warp has 2 x 16 pixels, columns come in eights, k-steps in sixteens. Where nearly all channels of a mask are on,
    all are multiplied. Several groups are as many products, side by side.
    """
    products, read, written = node.groups, node.in_channels // node.groups, node.out_channels // node.groups
    front = GROUP - 1 if products > 1 and read % GROUP else node.src_offset % GROUP
    rows, width, down, across, block_columns, column_blocks, warp_tiles, _, depth, resident, walk, scattered = cut[:12]
    slots, split, old_stride, pack = cut[12:]
    _, height, columns = graph.maps[node.dst]
    source, window = graph.maps[node.src], node.window
    tiles = [
        (min(rows, height - y), min(width, columns - x))
        for y in range(0, height, rows)
        for x in range(0, columns, width)
    ]
    warps = sum(-(-r * c // _WARP_ROWS) for r, c in tiles)
    cells = _cells(graph, node, rows, width)
    items = down * across * column_blocks
    groups, ran, total = -(-len(runs) // pack), 0, sum(map(bool, runs))
    if walk:
        launch.blocks = -(-len(runs) * items // walk)
    else:
        launch.blocks = min(groups * items, -(-(multiprocessors * resident // split) // products)) * split * products
    launch.pools = node.pool
    gathers = gathered_before = False
    deepest = 0
    for sample, (run, live, on) in enumerate(zip(runs, inputs, filters, strict=True)):
        if not run:
            continue
        all_filters = on >= nearly_all(node.out_channels)
        all_inputs = live >= (node.in_channels if scattered else nearly_all(node.in_channels))
        used = up(written, 16) if all_filters else up(on, 8)
        deep = up(read + front if all_inputs else live, _STEP)
        deepest = max(deepest, deep)
        column_tiles = -(-used // block_columns)
        if pack > 1:  # the first of a tile's samples stands for all of them
            warps = -(-min(pack, total - ran) * height * columns // _WARP_ROWS) if ran % pack == 0 else 0
        begins = ran % pack == 0
        ran += 1
        launch.active += begins * down * across * column_tiles * split * products
        steps = products * window.taps * deep // _STEP
        launch.mma += warps * 2 * used // 8 * steps
        # activations once for each warp beside the others, weights once for each warp above
        launch.l1_bytes += warps * steps * 32 * GROUP * element * (4 * -(-used // (8 * warp_tiles)) + used // 8)
        copies = float(begins * len(tiles))
        if walk and deep <= depth * GROUP:  # once for the tiles that a block walks; on average over the columns
            first = sample * len(tiles)
            firsts = range(first, len(runs) * items, len(runs) * len(tiles))
            copies = sum((at + len(tiles) - 1) // walk - at // walk + 1 for at in firsts) / len(firsts)
            if sample and all_filters and all_inputs and not gathered_before:
                copies -= sum(at % walk > 0 for at in firsts) / len(firsts)
        gathered_before = not (all_filters and all_inputs)
        gathers |= gathered_before
        launch.l2_bytes += int(copies * products * window.taps * deep * used * element)
        launch.l2_bytes += column_tiles * cells * products * up(read if all_inputs else live, GROUP) * element
        if split > 1:
            shared = products * split * _THREADS * 8 * warp_tiles * 4
            launch.l2_bytes += begins * down * across * column_tiles * shared
        if old_stride:
            launch.l2_bytes += height * columns * on * element
        moved = live * min(source.pixels, height * columns * max(window.taps, window.stride**2))
        moved += on * height * columns * (2 if node.accumulate else 1)
        launch.dram_bytes += moved * element
    launch.conv = ConvPace(
        warps=-(-pack * rows * width // _WARP_ROWS) * -(-block_columns // (8 * warp_tiles)),
        step=2 * warp_tiles,
        passes=-(-up(-(-deepest // split), _STEP) // (depth * GROUP)),
        ahead=0 if gathers else max(1, slots - 1),
        resident=resident,
        split=split,
        adds=warp_tiles // 2 if node.accumulate and not old_stride else 0,
        lists=node.out_mask >= 0 or reads.in_mask >= 0 or bool(reads.slices),
    )


def _cells(graph: Graph, node: Conv2d, rows: int, columns: int) -> int:
    """Pixels of the source that tiles of ``rows`` x ``columns`` copy: all between the first and the last, of a 1x1 its
    own."""
    window, to, source = node.window, graph.maps[node.dst], graph.maps[node.src]

    def along(size: int, tile: int, source: int, taps: int, pad: int) -> int:
        total, reach = 0, window.dilation * (taps - 1) + 1
        for first in range(0, size, tile):
            count, begin = min(tile, size - first), first * window.stride - pad
            if window.taps == 1:
                total += count
            else:
                total += min(begin + (count - 1) * window.stride + reach, source) - max(begin, 0)
        return total

    down = along(to.height, rows, source.height, window.rows, window.pad_rows)
    return down * along(to.width, columns, source.width, window.columns, window.pad_columns)


def on_maps(graph: Graph, node: Node, batch: int, ran: int, element: int, launch: Launch) -> None:
    """Adds what goes over a map channel by channel, a pool or a sum, and runs for ``ran`` samples of the batch."""
    to, source = graph.maps[node.dst if node.dst >= 0 else node.src], graph.maps[node.src]
    walked = source if isinstance(node, Upsample) else to
    launch.blocks, launch.active = (samples * -(-walked.pixels // _STRIP) for samples in (batch, ran))
    launch.pools = isinstance(node, (Subsample, PoolSums))
    written = node.out_channels if isinstance(node, Subsample) else node.in_channels
    if isinstance(node, PoolSums):
        written = 0
    launch.dram_bytes = ran * element * (node.in_channels * source.pixels + written * to.pixels)
