"""What the GPU kernels do that keep a sample's map in the shared memory of a cluster and walk what follows on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsn_kernels import _C
from dsn_kernels.graph import Conv2d, Gate, Graph

from .map_work import GROUP, ROWS, Launch, up

_STEP: int = _C.cuda.STEP
_WARPS = 16  # of a block of a stage or of bottleneck units
_TILES = 2  # of 8 columns that a warp of bottleneck units multiplies
_SECTOR = 32  # bytes that a read of the second-level cache moves at least


@dataclass
class _StageMap:
    """How a cluster shares out a map of a resident stage, and what one convolution of it takes."""

    graph: Graph
    cut: Sequence[int]
    element: int

    def __post_init__(self) -> None:
        self.map, self.units, rows, self.down, self.across, self.tiles, self.split = self.cut
        self.channels, self.height, self.width = self.graph.maps[self.map]
        self.wide = up(self.channels, _STEP)
        pieces = [-(-min(rows, self.height - y) // (2 * self.tiles)) for y in range(0, self.height, rows)]
        columns = self.wide // (8 * self.tiles)
        self.items = -(-self.width // 8) * sum(pieces) * columns  # of all blocks
        self.busiest = -(-self.width // 8) * max(pieces) * columns // self.across  # of one
        self.pixels = up(self.channels, GROUP) * self.height * self.width * self.element  # bytes

    def mma(self, taps: int, channels: int) -> int:
        return self.items * taps * self.tiles**2 * -(-channels // _STEP)

    def warp(self) -> int:
        rounds = -(-self.busiest * self.split // _WARPS)
        return rounds * -(-self.wide // _STEP // self.split) * 9 * self.tiles**2

    def item_bytes(self, taps: int, channels: int) -> int:
        """From shared memory: pixels and weights, a row of pixels once for the window's three, and shared sums."""
        loads = 3 * (2 * self.tiles + 2) + 9 * self.tiles if channels == self.channels else taps * 3 * self.tiles
        sums = (self.split - 1) * 2 * self.tiles**2 * 512
        return -(-channels // _STEP) * loads * 32 * GROUP * self.element + sums

    def weights(self, taps: int, channels: int) -> int:
        return taps * up(channels, _STEP) * self.wide * self.element


def resident_stage(
    graph: Graph, stage: tuple[int, int, Sequence[Sequence[int]]], gates: list[list[int]], element: int, launch: Launch
) -> None:
    """Adds residual units that a cluster of blocks does for each sample, as the sample's gates have it.

    A warp takes 8 pixels side by side in 2 ``tiles`` rows and as many times 8 columns. The first weights of a unit are
    copied before its gate is known.
    """
    begin, end, cuts = stage
    nodes = graph.nodes[begin:end]
    convolutions = [node for node in nodes if isinstance(node, Conv2d)]
    maps = [_StageMap(graph, cut, element) for cut in cuts]
    decided = sum(isinstance(node, Gate) for node in nodes)
    launch.cluster = maps[0].down * maps[0].across
    launch.blocks = len(gates) * launch.cluster
    for m in maps:
        l1, weights = m.busiest * m.item_bytes(9, m.channels), m.weights(9, m.channels) // m.across
        launch.maps.append((m.warp(), l1, weights))
    for sample in gates:
        convs = [[conv for conv in convolutions if conv.dst in _dsts(convolutions, m.map)] for m in maps]
        ran = [[conv for conv in on_map if conv.only_if < 0 or sample[conv.only_if]] for on_map in convs]
        if nodes[0] is convolutions[0] and convolutions[0].only_if >= 0 and not ran[0]:
            continue  # a unit whose gate was decided before
        launch.active += launch.cluster
        for m, done in zip(maps, ran, strict=True):
            for conv in done:
                launch.mma += m.mma(conv.window.taps, conv.in_channels)
                launch.l1_bytes += m.items * m.item_bytes(conv.window.taps, conv.in_channels)
                launch.l2_bytes += m.down * m.weights(conv.window.taps, conv.in_channels)
            # units whose first weights come before their gate
            ahead = m.units - any(conv.window.taps == 1 for conv in done)
            in_vain = ahead - sum(conv.src == m.map for conv in done)
            launch.l2_bytes += in_vain * m.down * m.weights(9, m.channels)
            launch.dram_bytes += (2 if done else 1) * m.pixels
        counted = (sum(conv.window.taps == 9 for conv in done) for done in ran)
        launch.paths.append((tuple(counted), decided))


def _dsts(convolutions: Sequence[Conv2d], map: int) -> set[int]:
    """A map and the one between the convolutions that change it."""
    return {map} | {conv.src for conv in convolutions if conv.dst == map and conv.accumulate}


def gradual_layer(graph: Graph, cut: Sequence[int], gates: list[list[int]], element: int, launch: Launch) -> None:
    """Adds update units that a cluster of blocks does for each sample: the state is read and written once."""
    begin, end, rows, blocks = cut[:4]
    batch = len(gates)
    channels, height, width = graph.maps[graph.nodes[begin].src]
    launch.blocks = launch.active = batch * blocks
    longest = phases = 0
    for node in graph.nodes[begin:end]:
        if not isinstance(node, Conv2d):
            continue
        phases += 1
        products = node.window.taps * up(node.out_channels, 16) // 8 * up(node.in_channels, _STEP) // _STEP
        for y in range(0, height, rows):
            tiles = -(-min(rows, height - y) * width // ROWS)
            launch.mma += batch * tiles * products
            # weights are read by instruction, a fragment of 256 bytes for each; pixels once for four columns of eight
            launch.l1_bytes += batch * tiles * products * 32 * GROUP * element * 3 // 2
        longest += -(-min(rows, height) * width // ROWS) * products
    launch.chains = [(phases, 0, longest)]
    launch.dram_bytes = 2 * batch * up(channels, GROUP) * height * width * element


def resident_bottleneck(graph: Graph, cut: Sequence[int], gates: list[list[int]], element: int, launch: Launch) -> None:
    """Adds bottleneck units that a cluster of blocks does for each sample, each with the filters that are on.

    All inputs are multiplied, zero where a filter is off. A filter's weights for four inputs lie beside those of its
    neighbours, which share a sector of the cache.
    """
    begin, end, rows, blocks = cut[:4]
    convolutions = [node for node in graph.nodes[begin:end] if isinstance(node, Conv2d)]
    channels, height, width = graph.maps[convolutions[0].src]
    parts = [min(rows, height - y) * width for y in range(0, height, rows)]
    launch.blocks = launch.active = len(gates) * blocks
    launch.cluster = blocks
    launch.dram_bytes = 2 * len(gates) * up(channels, GROUP) * height * width * element
    beside = max(1, _SECTOR // (GROUP * element))
    for sample in gates:
        walk = []
        for at, conv in enumerate(convolutions):
            on = [1] * conv.out_channels
            if conv.out_mask >= 0:
                on = sample[conv.out_mask : conv.out_mask + conv.out_channels]
            groups = up(conv.in_channels, _STEP) // GROUP
            steps, columns = conv.window.taps * groups // (_STEP // GROUP), -(-sum(on) // 8)
            across = -(-columns // _TILES)
            most = l1 = 0
            for pixels in parts:
                tiles = -(-pixels // ROWS)
                items, split = tiles * across, 1
                while 2 * split * items <= _WARPS and 2 * split <= steps and items:
                    split *= 2
                normalised = 2 if at % 3 == 0 else 0  # scale and shift beside the pixels
                loads = steps * 32 * GROUP * element * (items * (2 + normalised) + tiles * columns)
                l1 = max(l1, loads + items * (split - 1) * 2 * _TILES * 512)  # of the warps that share a product
                launch.l1_bytes += loads
                launch.mma += tiles * columns * steps
                most = max(most, -(-items * split // _WARPS) * -(-steps // split) * min(_TILES, columns))
            sectors = sum(any(on[i : i + beside]) for i in range(0, len(on), beside))
            copied = conv.window.taps * groups * sectors * _SECTOR
            launch.l2_bytes += blocks * copied
            walk.append((most, l1, copied))
        launch.walks.append(walk)
