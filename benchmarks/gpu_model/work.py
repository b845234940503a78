"""What the GPU kernels do for given gates, by formula: tensor-core instructions and main-memory bytes of each launch.

The host runner counts the same instructions one by one; tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsn_kernels import _C
from dsn_kernels.graph import (
    Conv2d,
    DenseBlock,
    Gate,
    Head,
    Load,
    Map,
    Node,
    Reads,
    Stem,
    Transition,
    Window,
    find_reads,
    trace,
)
from dsn_kernels.lower import Plan

from . import map_work as maps
from . import resident_work as resident
from .map_work import GROUP, ROWS, Cuts, Launch, up


def _groups(channels: int) -> int:
    return -(-channels // GROUP)


def _columns(channels: int) -> int:
    columns: int = _C.cuda.COLUMNS
    return -(-channels // columns) * columns


def _live_groups(reads: Reads, sample: list[int], begin: int, end: int) -> int:
    """Of the channels that a node reads, of those from ``begin`` to ``end``: groups that hold data. Layers of a dense
    block, and what is ahead of them, begin a group each."""
    layers = [part for part in reads.slices if begin <= part.start < end] if not reads.one_by_one else []
    first = layers[0].start if layers else end
    on = (all(sample[gate] for gate in reads.channels[part.start]) for part in layers)
    return _groups(first - begin) + sum(_groups(len(part)) for part, runs in zip(layers, on, strict=True) if runs)


def _as_convolution(node: Transition) -> Conv2d:
    """What a transition is lowered to where its inputs are chosen one by one."""
    sizes: dict[str, Any] = {"src": node.src, "dst": node.dst, "in_channels": node.in_channels}
    bias = node.weight.new_zeros(node.out_channels)
    return Conv2d(weight=node.weight, bias=bias, before=node.norm, window=Window(1, 1, stride=2), **sizes)


def network_work(plan: Plan, gates: Tensor, cuts: Cuts, element: int) -> list[Launch]:
    """The launches of ``plan`` in order.

    Args:
        plan: of the GPU kernels.
        gates: uint8 [B, L] of 0 and 1.
        cuts: of its schedule.
        element: bytes of a weight and an activation.
    """
    return _Counter(plan, gates, cuts, element).run()


class _Counter:
    def __init__(self, plan: Plan, gates: Tensor, cuts: Cuts, element: int) -> None:
        self.graph, self.gates, self.cuts, self.element = plan.graph, gates.tolist(), cuts, element
        self.ops = [fields["op"] for fields in plan.code]
        self.tiles, self.convs, self.streams = iter(cuts.layers), iter(cuts.convs), cuts.streams
        self.reads = find_reads(plan.graph)
        self.traced = {(work.index, work.layer): work for work in trace(plan.graph, gates) if work.inputs is not None}
        self.launches: list[Launch] = []

    def run(self) -> list[Launch]:
        names = {code: name for name, code in _C.OPS.items()}
        for _ in range(self.cuts.lists):
            self.launches.append(Launch("lists", 0, len(self.gates), len(self.gates)))
        for _ in range(self.cuts.groups):
            blocks = -(-len(self.gates) // 256)
            self.launches.append(Launch("groups", 0, blocks, blocks))
        walks: tuple[tuple[str, Sequence[Sequence[Any]]], ...] = (
            ("gradual_layer", self.cuts.gradual),
            ("resident_stage", self.cuts.stages),
            ("resident_bottleneck", self.cuts.bottlenecks),
        )
        runs = {run[0]: (kernel, run) for kernel, found in walks for run in found}
        within = {i for _, run in runs.values() for i in range(run[0], run[1])}
        for index, (node, op) in enumerate(zip(self.graph.nodes, self.ops, strict=True)):
            name = names[op]
            cut = next(self.convs) if name == "conv2d" else ()
            if index in within:
                if index in runs:
                    kernel, run = runs[index]
                    launch = Launch(kernel, self.streams[node.src])
                    getattr(resident, kernel)(self.graph, run, self.gates, self.element, launch)
                    self.launches.append(launch)
                continue
            if isinstance(node, Gate) and not self.cuts.gates_have_launches:
                if self.launches and node.recurrence is not None:
                    self.launches[-1].gates += 1
                continue
            if isinstance(node, DenseBlock):
                tiles, ran = [next(self.tiles) for _ in node.layers], self._ran(node, index)
                if tiles[0][4]:
                    self._resident(node, ran, tiles[0])
                else:
                    for layer, tile in enumerate(tiles):
                        self._layer(node, [layers[layer] for layers in ran if layer in layers], tile)
                continue
            launch = Launch(name, self.streams[node.dst if node.dst >= 0 else node.src])
            if name == "conv2d" and isinstance(node, Transition):
                node = _as_convolution(node)
            if isinstance(node, Conv2d):
                self._conv2d(node, index, cut, launch)
            else:
                getattr(self, "_" + name, self._on_maps)(node, self.reads[index], launch)
            self.launches.append(launch)
        return self.launches

    def _product(self, launch: Launch, pixels: int, columns: int, steps: int) -> None:
        """A product of a sample in tiles of 16 pixels."""
        tiles = -(-pixels // ROWS)
        launch.mma += tiles * columns // 8 * steps
        launch.l1_bytes += tiles * steps * 32 * 4 * self.element * (2 + columns // 8)

    def _conv2d(self, node: Conv2d, index: int, cut: Sequence[int], launch: Launch) -> None:
        inputs, filters = self.traced[index, -1].inputs, self.traced[index, -1].filters
        assert inputs is not None
        on = [node.out_channels] * len(self.gates) if filters is None else filters.tolist()
        runs = [sample[node.only_if] if node.only_if >= 0 else 1 for sample in self.gates]
        cuts = cut, self.cuts.multiprocessors
        maps.conv2d(self.graph, node, self.reads[index], *cuts, runs, inputs.tolist(), on, self.element, launch)

    def _on_maps(self, node: Node, reads: Reads, launch: Launch) -> None:
        only_if = getattr(node, "only_if", -1)
        ran = sum(sample[only_if] if only_if >= 0 else 1 for sample in self.gates)
        maps.on_maps(self.graph, node, len(self.gates), ran, self.element, launch)

    def _per_sample(self, node: Node, reads: Reads, launch: Launch) -> None:
        launch.blocks = launch.active = len(self.gates)

    _gate = _decide = _linear = _fully_connected = _per_sample

    def _load(self, node: Load, reads: Reads, launch: Launch) -> None:
        self._copy(node, self.graph.maps[node.dst], launch)

    def _store(self, node: Node, reads: Reads, launch: Launch) -> None:
        self._copy(node, self.graph.maps[node.src], launch)

    def _copy(self, node: Node, map: Map, launch: Launch) -> None:
        """A float32 map of the caller's to one of the graph's, or back."""
        launch.blocks = launch.active = len(self.gates) * -(-map.pixels // 64)
        launch.dram_bytes = len(self.gates) * map.pixels * node.in_channels * (4 + self.element)

    def _stem(self, node: Stem, reads: Reads, launch: Launch) -> None:
        pixels, columns = self.graph.maps[node.dst].pixels, _columns(node.out_channels)
        launch.blocks = launch.active = len(self.gates) * -(-pixels // 64) * -(-columns // 64)
        for _ in self.gates:
            self._product(launch, pixels, columns, up(node.in_channels * 9, 16) // 16)
            launch.dram_bytes += pixels * (4 * node.in_channels + self.element * node.out_channels)

    def _transition(self, node: Transition, reads: Reads, launch: Launch) -> None:
        to, source, columns = self.graph.maps[node.dst], self.graph.maps[node.src], _columns(node.out_channels)
        launch.blocks = launch.active = len(self.gates) * -(-to.pixels // 64) * -(-columns // 64)
        for sample in self.gates:
            own = _live_groups(reads, sample, 0, node.in_channels)
            guide = _live_groups(reads, sample, node.in_channels, len(reads.channels))
            self._product(launch, to.pixels, columns, sum(-(-groups // 4) for groups in (own, guide)))
            launch.dram_bytes += self.element * GROUP * own * source.pixels
            launch.dram_bytes += self.element * node.out_channels * to.pixels

    def _head(self, node: Head, reads: Reads, launch: Launch) -> None:
        pixels = self.graph.maps[node.src].pixels
        launch.blocks = launch.active = len(self.gates)
        for sample in self.gates:
            live = _live_groups(reads, sample, 0, node.in_channels)
            launch.dram_bytes += self.element * GROUP * live * pixels

    _path_head = _head

    def _ran(self, block: DenseBlock, index: int) -> list[dict[int, int]]:
        """For each sample, the layers that run, and how many groups that hold data each of them reads."""
        ran: list[dict[int, int]] = [{} for _ in self.gates]
        for layer in range(len(block.layers)):
            work = self.traced[index, layer]
            assert work.inputs is not None
            for layers, taken, inputs in zip(ran, work.ran.tolist(), work.inputs.tolist(), strict=True):
                before = (inputs - block.in_channels) // block.added if block.added else 0
                if taken:
                    layers[layer] = _groups(block.in_channels) + before * _groups(block.added)
        return ran

    def _layer(self, block: DenseBlock, live: list[int], tile: Sequence[int]) -> None:
        """``live``: groups that it reads, of each sample for which it runs."""
        launch = Launch("layer", self.streams[block.dst], blocks=len(self.gates) * tile[2] * tile[3])
        self.launches.append(launch)
        for groups in live:
            launch.active += tile[2] * tile[3]
            self._run_layer(launch, block, groups, tile)

    def _resident(self, block: DenseBlock, ran: list[dict[int, int]], tile: Sequence[int]) -> None:
        """All layers in one launch; a sample whose layers are all shut leaves its gates alone, by one block."""
        launch = Launch("block", self.streams[block.dst], blocks=len(self.gates) * tile[2] * tile[3])
        self.launches.append(launch)
        for layers in ran:
            launch.active += tile[2] * tile[3] if layers else 1
            longest = sum(self._run_layer(launch, block, groups, tile) for groups in layers.values())
            launch.chains.append((len(layers), len(block.layers) - len(layers), longest))

    def _run_layer(self, launch: Launch, block: DenseBlock, live: int, tile: Sequence[int]) -> int:
        """Adds a layer of a sample that reads ``live`` groups; the instructions of its longest tile."""
        longest, map = 0, self.graph.maps[block.dst]
        for own, halo in self._tiles(map, tile):
            before = launch.mma
            self._tile(launch, block, -(-live // 4), own, halo)
            longest = max(longest, launch.mma - before)
        rows = min(1 + 2 / tile[0], 2) if tile[2] > 1 else 1.0  # a row of halo is read by two tiles
        written = block.in_channels if block.merge == "add" else block.out_channels
        launch.dram_bytes += int(self.element * map.pixels * (live * GROUP * rows + written))
        return longest

    def _tiles(self, map: Map, tile: Sequence[int]) -> list[tuple[int, int]]:
        """(own pixels, pixels with the halo inside the map) of each tile."""
        _, height, width = map
        sizes = []
        for y in range(0, height, tile[0]):
            for x in range(0, width, tile[1]):
                rows, columns = min(tile[0], height - y), min(tile[1], width - x)
                halo_rows = min(y + rows + 1, height) - max(y - 1, 0)
                halo_columns = min(x + columns + 1, width) - max(x - 1, 0)
                sizes.append((rows * columns, halo_rows * halo_columns))
        return sizes

    def _tile(self, launch: Launch, block: DenseBlock, steps: int, own: int, halo: int) -> None:
        reduce = _columns(block.bottleneck)

        def product(pixels: int, rows: int, columns: int, count: int) -> None:
            tiles = up(pixels, rows) // ROWS
            launch.mma += tiles * columns // 8 * count
            # activations: two groups a lane for 16 pixels; weights: one for each 8 columns, shared by `rows` pixels
            loads = 2 * tiles + tiles * ROWS // rows * columns // 8
            launch.l1_bytes += count * 32 * GROUP * self.element * loads

        if not block.bottleneck:
            product(own, 32, _columns(block.out_channels), 9 * steps)
        elif block.merge == "add":
            product(halo, 16, reduce, steps)
            product(own, 16, reduce, 9 * reduce // 16)
            product(own, 16, _columns(block.in_channels), reduce // 16)
        else:
            product(halo, 32, reduce, steps)
            product(own, 32, _columns(block.out_channels), 9 * reduce // 16)
