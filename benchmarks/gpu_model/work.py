"""What the GPU kernels do for given gates, by formula: tensor-core instructions and main-memory bytes of each launch.

The host runner counts the same instructions one by one; tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsn_kernels import _C
from dsn_kernels.ops.network import Instruction, Plan

from . import map_work as maps
from . import resident_work as resident
from .map_work import GROUP, ROWS, Cuts, Launch, up


def _groups(channels: int) -> int:
    return -(-channels // GROUP)


def _columns(channels: int) -> int:
    columns: int = _C.cuda.COLUMNS
    return -(-channels // columns) * columns


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
        self.plan, self.gates, self.cuts, self.element = plan, gates.tolist(), cuts, element
        self.tiles, self.convs, self.streams = iter(cuts.layers), iter(cuts.convs), cuts.streams
        self.traced = {work.index: work for work in plan.trace(gates) if work.inputs is not None}
        self.blocks = {step.dst: step for step in plan.code if step.op == _C.OPS["dense_block"]}
        self.first: dict[int, int] = {}  # channels of each buffer that are always live
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
        for index, step in enumerate(self.plan.code):
            name = names[step.op]
            cut = next(self.convs) if name == "conv2d" else ()
            if index in within:
                if index in runs:
                    kernel, run = runs[index]
                    launch = Launch(kernel, self.streams[step.src])
                    getattr(resident, kernel)(self.plan, run, self.gates, self.element, launch)
                    self.launches.append(launch)
                continue
            if name == "gate" and not self.cuts.gates_have_launches:
                if self.launches and step.gate == _C.GATES["recurrent"]:
                    self.launches[-1].gates += 1
                continue
            if name == "dense_block":
                tiles = [next(self.tiles) for _ in range(step.layers)]
                if tiles[0][4]:
                    self._resident(step, tiles[0])
                else:
                    for layer, tile in enumerate(tiles):
                        self._layer(step, layer, tile)
                continue
            launch = Launch(name, self.streams[step.dst if step.dst >= 0 else step.src])
            if name == "conv2d":
                self._conv2d(step, index, cut, launch)
            else:
                getattr(self, "_" + name)(step, launch)
            self.launches.append(launch)
        return self.launches

    def _size(self, buffer: int) -> tuple[int, int]:
        return self.plan.buffers[buffer][1], self.plan.buffers[buffer][2]

    def _live(self, buffer: int, sample: list[int], layers: int | None = None) -> int:
        """Live groups of a buffer, after ``layers`` layers of its block."""
        step = self.blocks.get(buffer)
        groups = _groups(self.first[buffer])
        if step is None or step.merge == _C.MERGES["add"]:
            return groups
        taken = sample[step.first_gate : step.first_gate + (step.layers if layers is None else layers)]
        return groups + sum(taken) * _groups(step.out_channels)

    def _pointwise(self, launch: Launch, pixels: int, columns: int, steps: int) -> None:
        """A product of a sample in tiles of 16 pixels."""
        tiles = -(-pixels // ROWS)
        launch.mma += tiles * columns // 8 * steps
        launch.l1_bytes += tiles * steps * 32 * 4 * self.element * (2 + columns // 8)

    def _conv2d(self, step: Instruction, index: int, cut: Sequence[int], launch: Launch) -> None:
        work = self.traced[index]
        assert work.inputs is not None and work.filters is not None
        runs = [sample[step.only_if] if step.only_if >= 0 else 1 for sample in self.gates]
        counts = runs, work.inputs.tolist(), work.filters.tolist()
        maps.conv2d(self.plan, step, cut, self.cuts.multiprocessors, *counts, self.element, launch)
        self.first[step.dst] = self.plan.buffers[step.dst][0]

    def _without_weights(self, step: Instruction, launch: Launch) -> None:
        maps.without_weights(self.plan, step, len(self.gates), self.element, launch)
        if step.dst >= 0:
            self.first[step.dst] = self.plan.buffers[step.dst][0]

    _subsample = _max_pool = _avg_pool = _pool_sums = _add = _tanh = _without_weights

    def _per_sample(self, step: Instruction, launch: Launch) -> None:
        launch.blocks = launch.active = len(self.gates)

    _gate = _linear = _per_sample

    def _load(self, step: Instruction, launch: Launch) -> None:
        self.first[step.dst] = step.in_channels
        self._copy(step, step.dst, launch)

    def _store(self, step: Instruction, launch: Launch) -> None:
        self._copy(step, step.src, launch)

    def _copy(self, step: Instruction, buffer: int, launch: Launch) -> None:
        """A float32 map of the caller's to a buffer, or back."""
        height, width = self._size(buffer)
        launch.blocks = launch.active = len(self.gates) * -(-height * width // 64)
        launch.dram_bytes = len(self.gates) * height * width * step.in_channels * (4 + self.element)

    def _stem(self, step: Instruction, launch: Launch) -> None:
        self.first[step.dst] = step.out_channels
        height, width = self._size(step.dst)
        launch.blocks = launch.active = (
            len(self.gates) * -(-height * width // 64) * -(-_columns(step.out_channels) // 64)
        )
        for _ in self.gates:
            self._pointwise(launch, height * width, _columns(step.out_channels), up(step.in_channels * 9, 16) // 16)
            launch.dram_bytes += height * width * (4 * step.in_channels + self.element * step.out_channels)

    def _transition(self, step: Instruction, launch: Launch) -> None:
        self.first[step.dst] = step.out_channels
        height, width = self._size(step.dst)
        from_height, from_width = self._size(step.src)
        columns = _columns(step.out_channels)
        launch.blocks = launch.active = len(self.gates) * -(-height * width // 64) * -(-columns // 64)
        for sample in self.gates:
            groups = [self._live(step.src, sample)]
            if step.guide >= 0:
                groups.append(self._live(step.guide, sample))
            self._pointwise(launch, height * width, columns, sum(-(-g // 4) for g in groups))
            launch.dram_bytes += self.element * GROUP * groups[0] * from_height * from_width
            launch.dram_bytes += self.element * step.out_channels * height * width

    def _head(self, step: Instruction, launch: Launch) -> None:
        height, width = self._size(step.src)
        launch.blocks = launch.active = len(self.gates)
        for sample in self.gates:
            launch.dram_bytes += self.element * GROUP * self._live(step.src, sample) * height * width

    _path_head = _head

    def _layer(self, step: Instruction, layer: int, tile: Sequence[int]) -> None:
        launch = Launch("layer", self.streams[step.dst], blocks=len(self.gates) * tile[2] * tile[3])
        self.launches.append(launch)
        self.first[step.dst] = step.in_channels
        for sample in self.gates:
            if sample[step.first_gate + layer]:
                launch.active += tile[2] * tile[3]
                self._run_layer(launch, step, layer, tile, sample)

    def _resident(self, step: Instruction, tile: Sequence[int]) -> None:
        """All layers in one launch; a sample whose layers are all shut leaves its gates alone, by one block."""
        launch = Launch("block", self.streams[step.dst], blocks=len(self.gates) * tile[2] * tile[3])
        self.launches.append(launch)
        self.first[step.dst] = step.in_channels
        for sample in self.gates:
            taken = sample[step.first_gate : step.first_gate + step.layers]
            launch.active += tile[2] * tile[3] if any(taken) else 1
            ran = [layer for layer in range(step.layers) if taken[layer]]
            longest = sum(self._run_layer(launch, step, layer, tile, sample) for layer in ran)
            launch.chains.append((sum(taken), step.layers - sum(taken), longest))

    def _run_layer(self, launch: Launch, step: Instruction, layer: int, tile: Sequence[int], sample: list[int]) -> int:
        """Adds a layer of a sample; the instructions of its longest tile."""
        longest = 0
        for own, halo in self._tiles(step.dst, tile):
            before = launch.mma
            self._tile(launch, step, -(-self._live(step.dst, sample, layer) // 4), own, halo)
            longest = max(longest, launch.mma - before)
        height, width = self._size(step.dst)
        live = self._live(step.dst, sample, layer) * GROUP
        rows = min(1 + 2 / tile[0], 2) if tile[2] > 1 else 1.0  # a row of halo is read by two tiles
        written = step.in_channels if step.merge == _C.MERGES["add"] else step.out_channels
        launch.dram_bytes += int(self.element * height * width * (live * rows + written))
        return longest

    def _tiles(self, buffer: int, tile: Sequence[int]) -> list[tuple[int, int]]:
        """(own pixels, pixels with the halo inside the map) of each tile."""
        height, width = self._size(buffer)
        sizes = []
        for y in range(0, height, tile[0]):
            for x in range(0, width, tile[1]):
                rows, columns = min(tile[0], height - y), min(tile[1], width - x)
                halo_rows = min(y + rows + 1, height) - max(y - 1, 0)
                halo_columns = min(x + columns + 1, width) - max(x - 1, 0)
                sizes.append((rows * columns, halo_rows * halo_columns))
        return sizes

    def _tile(self, launch: Launch, step: Instruction, steps: int, own: int, halo: int) -> None:
        reduce = _columns(step.bottleneck)

        def product(pixels: int, rows: int, columns: int, count: int) -> None:
            tiles = up(pixels, rows) // ROWS
            launch.mma += tiles * columns // 8 * count
            # activations: two groups a lane for 16 pixels; weights: one for each 8 columns, shared by `rows` pixels
            loads = 2 * tiles + tiles * ROWS // rows * columns // 8
            launch.l1_bytes += count * 32 * GROUP * self.element * loads

        if not step.bottleneck:
            product(own, 32, _columns(step.out_channels), 9 * steps)
        elif step.merge == _C.MERGES["add"]:
            product(halo, 16, reduce, steps)
            product(own, 16, reduce, 9 * reduce // 16)
            product(own, 16, _columns(step.in_channels), reduce // 16)
        else:
            product(halo, 32, reduce, steps)
            product(own, 32, _columns(step.out_channels), 9 * reduce // 16)
