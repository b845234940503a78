"""What the convolutions of plans do, counted on the host runner, against formulas."""

import pytest
import torch
from graph_reference import run_graph
from small_graphs import ONE, VOCABULARY, WIDE, Weights, nested, random_gates, residual_units
from small_graphs import make_images as make_inputs

import dsn_kernels
from benchmarks.gpu_model.map_work import Cuts
from benchmarks.gpu_model.work import network_work
from csrc.simt import host_runner
from csrc.simt.host_runner import HostRunner
from dsn_kernels import graph as g
from dsn_kernels.lower.cuda import lower
from tests.checks import assert_as_exact_as_torch
from tests.networks import make_images, make_planned

WARPS = 8


def up(n, multiple):
    return -(-n // multiple) * multiple


class Tile:
    """How the schedule cuts a convolution."""

    def __init__(self, fields):
        self.rows, self.columns, self.down, self.across, self.block_columns, self.column_blocks, self.warp_tiles = (
            fields[:7]
        )
        self.resident, self.split, self.pack = fields[9], fields[13], fields[15]

    def items(self, samples):
        return -(-samples // self.pack) * self.down * self.across * self.column_blocks

    def blocks(self, samples):
        """Of a launch for so many samples."""
        return min(self.items(samples), host_runner.MULTIPROCESSORS * self.resident // self.split) * self.split

    def looks(self, batch, active):
        """How often the blocks read the words of a gate that ``active`` samples opened."""
        total, each = 0, self.items(1)
        clusters = self.blocks(batch) // self.split
        for first in range(clusters):
            for item in range(first, self.items(batch), clusters):
                found = min(self.pack, max(0, active - item // each * self.pack))
                total += min(found + 1, self.pack)
                if not found:
                    break
        return total * self.split

    def own(self, height, width):
        """(rows, columns) of each tile, and where it begins."""
        for y in range(0, height, self.rows):
            for x in range(0, width, self.columns):
                yield y, x, min(self.rows, height - y), min(self.columns, width - x)


def half_runner(graph):
    return HostRunner(lower(graph, torch.float16))


def conv_tiles(runner, batch):
    return [Tile(fields) for fields in runner.schedule(batch).conv_tiles]


GENERAL = ["gaternet-shake", "gaternet-densenet", "gaternet-inception"]
SOLID = ["shake-shake", "densenet-bc", "inception", "lenet", "gunn"]


def work_of(runner, gates):
    return network_work(runner.plan, gates, Cuts.of(runner.schedule(len(gates)), host_runner.MULTIPROCESSORS), 2)


@pytest.mark.parametrize(
    ("name", "density"),
    [
        *(
            (name, d)
            for name in ("skipnet-rnn", "skipnet-ff-2", "gaternet-all", "gaternet-preact")
            for d in (0.0, 0.5, 1.0)
        ),
        *((name, 0.5) for name in GENERAL),
        *((name, 0.93) for name in ("gaternet-all", "gaternet-preact")),
        *((name, 1.0) for name in SOLID),
    ],
)
def test_tensor_core_instructions_launches_and_blocks(simt, name, density):
    model = make_planned(name)
    fast = dsn_kernels.accelerate(model, dtype=torch.float16, backend="simt")
    count, batch = fast.graph.gates, 3
    gates = (torch.rand(batch, count, generator=torch.Generator().manual_seed(1)) < density).byte()
    limits, images = torch.full((count,), 0.5), make_images(model, batch)
    images = images if fast.stem is None else fast.stem(images.half())
    simt.reset_counters()
    out = fast.runner(images, limits, gates)
    if gates.shape[1] == sum(fast.layers.values()):
        assert torch.equal(out.gates, gates)
    counts, work = simt.counters(), work_of(fast.runner, gates)
    assert counts["mma_m16n8k16_f16"] == sum(launch.mma for launch in work) > 0
    assert counts["launches"] == len(work)
    assert counts["blocks"] == sum(launch.blocks for launch in work)


@pytest.mark.parametrize("name", [*VOCABULARY, "nested"])
def test_the_vocabulary(simt, name):
    graph = nested() if name == "nested" else VOCABULARY[name]()
    runner, batch = half_runner(graph), 3
    simt.reset_counters()
    out = runner(make_inputs(graph, batch), torch.full((graph.gates,), 0.5), random_gates(graph, batch))
    counts, work = simt.counters(), work_of(runner, out.gates)
    assert counts.get("mma_m16n8k16_f16", 0) == sum(launch.mma for launch in work)
    assert counts["launches"] == len(work)
    assert counts["blocks"] == sum(launch.blocks for launch in work)


def gated_conv(channels, side, window, filters=24, with_conv=True):
    """load, gate on it, convolution behind the gate."""
    graph, weights = g.Graph(), Weights()
    x, y = graph.map(channels, side), graph.map(filters, *window.output_size(side, side))
    graph.add(g.Load(dst=x, in_channels=channels))
    graph.add(g.PoolSums(src=x, in_channels=channels))
    graph.add(g.Gate(src=x, first_gate=0, **weights.linear(1, channels)))
    if with_conv:
        conv = weights.conv(filters, channels, window.rows)
        graph.add(g.Conv2d(src=x, dst=y, window=window, only_if=0, activation="relu", **conv))
    return graph


def count(simt, runner, x, gates):
    simt.reset_counters()
    runner(x, torch.full((gates.shape[1],), 0.5), gates)
    return simt.counters()


def conv_counts(simt, gates, **shape):
    """What the convolution alone adds."""
    x = torch.randn(len(gates), shape["channels"], shape["side"], shape["side"])
    graphs = (gated_conv(**shape, with_conv=with_conv) for with_conv in (True, False))
    whole, rest = (count(simt, half_runner(graph), x, gates) for graph in graphs)
    return {name: whole[name] - rest[name] for name in whole}


SHAPES = [
    {"channels": 12, "side": 9, "window": WIDE},
    {"channels": 20, "side": 17, "window": WIDE._replace(stride=2)},
    {"channels": 100, "side": 8, "window": ONE},
    {"channels": 100, "side": 7, "window": WIDE._replace(stride=2)},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bypassed_convolution_reads_its_gate_word_and_nothing_more(simt, shape):
    batch = 3
    counts = conv_counts(simt, torch.zeros(batch, 1, dtype=torch.uint8), **shape)
    (tile,) = conv_tiles(half_runner(gated_conv(**shape)), batch)
    blocks = tile.blocks(batch)
    assert counts["blocks"] == counts["idle_blocks"] == blocks
    assert counts["global_load_bytes"] == blocks * WARPS * 8
    assert counts["block_barriers"] == blocks * (tile.pack > 1)
    for name in ("global_store_bytes", "shared_load_bytes", "shared_store_bytes", "global_atomics"):
        assert counts[name] == 0
    assert counts["mma_m16n8k16_f16"] == 0 and counts["cp_async"] == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_of_a_convolution(simt, shape):
    """Every tile reads its window and all weights of its columns once, and writes its outputs once."""
    gates = torch.tensor([[1], [0], [1]], dtype=torch.uint8)
    counts = conv_counts(simt, gates, **shape)
    graph, size = gated_conv(**shape), 2
    runner, node = half_runner(graph), graph.nodes[-1]
    (tile,) = conv_tiles(runner, len(gates))
    side, out_side, taps, stride = shape["side"], graph.maps[node.dst].height, node.window.taps, node.window.stride
    reach, live, depth = taps // 9, up(node.in_channels, 4), up(node.in_channels, 16)
    copied = bias = stored = 0
    for first in range(0, 32, tile.block_columns):
        columns = min(tile.block_columns, 32 - first)
        for y, x, rows, width in tile.own(out_side, out_side):

            def inside(begin, n):
                places = (
                    range(begin * stride - reach, (begin + n - 1) * stride + 1 + reach)
                    if reach
                    else range(begin * stride, (begin + n) * stride, stride)
                )
                return sum(0 <= place < side for place in places)

            copied += 2 * inside(y, rows) * inside(x, width) * live * size
            copied += tile.items(2) // tile.items(1) * taps * depth * columns * size
            bias += tile.items(2) // tile.items(1) * tile.split * columns * 4
            stored += 2 * rows * width * min(columns, 24 - first) * size
    assert counts["global_load_bytes"] == copied + bias + tile.looks(len(gates), 2) * WARPS * 8
    assert counts["global_store_bytes"] == stored
    assert counts["global_atomics"] == 2 * tile.items(1)  # MACs
    work = work_of(runner, gates)
    assert counts["mma_m16n8k16_f16"] == sum(launch.mma for launch in work)
    sums = tile.items(2) * tile.split * 256 * 8 * tile.warp_tiles * 4 if tile.split > 1 else 0
    assert work[-1].l2_bytes == copied + sums


def test_a_block_does_several_tiles_and_reads_the_weights_once(simt, monkeypatch):
    monkeypatch.setattr(host_runner, "MULTIPROCESSORS", 2)
    batch, channels, side = 100, 8, 3
    graph, stored = (gated_conv(channels, side, WIDE, filters=8) for _ in range(2))
    stored.add(g.Store(src=stored.nodes[-1].dst, in_channels=8))
    runner, images = half_runner(graph), torch.randn(batch, channels, side, side)
    gates = (torch.rand(batch, 1, generator=torch.Generator().manual_seed(2)) < 0.8).byte()
    out, ran = half_runner(stored)(images, torch.full((1,), 0.5), gates), gates[:, 0].bool()
    same, exact = (run_graph(stored, images, None, gates, dtype).map for dtype in (torch.float16, torch.float64))
    assert_as_exact_as_torch(out.map[ran], same[ran], exact[ran])
    assert out.map[~ran].isnan().all(), "a bypassed sample is not written"
    (tile,) = conv_tiles(runner, batch)
    blocks, active = tile.blocks(batch), int(ran.sum())
    assert tile.pack > 1 and tile.items(1) == 1 and blocks < tile.items(active)
    alone = half_runner(gated_conv(channels, side, WIDE, with_conv=False))
    counts, rest = (count(simt, each, images, gates) for each in (runner, alone))
    words = tile.looks(batch, active) * WARPS * 8 * -(-batch // 64)
    inputs = active * side * side * 8 * 2 + tile.items(active) * 16 * 4
    assert counts["global_load_bytes"] - rest["global_load_bytes"] == words + inputs + blocks * 9 * 16 * 16 * 2


def test_float32_uses_no_tensor_cores(simt):
    fast = dsn_kernels.accelerate(make_planned("skipnet-rnn"), backend="simt")
    simt.reset_counters()
    fast(make_images(fast, 1))
    assert simt.counters()["mma_macs"] == 0


def gradual_layer(channels, side, sizes, width, shortcut, with_layer=True):
    """load, then update units of these sizes in order."""
    graph, weights = g.Graph(), Weights()
    x, joined, inner = (graph.map(c, side) for c in (channels, width + max(sizes), width))
    graph.add(g.Load(dst=x, in_channels=channels))

    def conv(src, dst, outputs, inputs, window, **fields):
        graph.add(g.Conv2d(src=src, dst=dst, window=window, **fields, **weights.conv(outputs, inputs, window.rows)))

    for i, size in enumerate(sizes if with_layer else []):
        at = sum(sizes[:i])
        with graph.region("update_unit"):
            outputs, ends = (width + size, width) if shortcut else (width, 0)
            conv(x, joined, outputs, channels, ONE, activation="relu", activated=ends)
            conv(joined, inner, width, width, WIDE, activation="relu")
            if shortcut:
                conv(inner, joined, size, width, ONE, accumulate=True, out_offset=width)
                graph.add(
                    g.Pointwise(accumulate=True, src=joined, dst=x, in_channels=size, src_offset=width, out_offset=at)
                )
            else:
                conv(inner, x, size, width, ONE, accumulate=True, out_offset=at)
    graph.add(g.Store(src=x, in_channels=channels))
    return half_runner(graph)


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize(("channels", "side", "sizes", "width"), [(24, 16, (12, 12), 24), (10, 7, (1, 6, 3), 5)])
def test_a_gradual_layer_is_one_launch(simt, channels, side, sizes, width, shortcut):
    """It reads and writes the state once; the weights come by instruction, a fragment of 256 bytes for each."""
    batch = 2
    x = torch.randn(batch, channels, side, side)
    runners = [gradual_layer(channels, side, sizes, width, shortcut, with_layer) for with_layer in (True, False)]
    whole, rest = (count(simt, runner, x, torch.empty(batch, 0, dtype=torch.uint8)) for runner in runners)
    counts = {name: whole[name] - rest[name] for name in whole}
    ((begin, end, rows, blocks, _),) = runners[0].schedule(batch).gradual_runs
    assert (begin, end) == (1, len(runners[0].graph.nodes) - 1) and blocks > 1
    assert counts["launches"] == 1 and counts["blocks"] == batch * blocks
    pixels, mma, bias = side * side, 0, 0
    tiles = sum(-(-min(rows, side - y) * side // 16) for y in range(0, side, rows))
    wide, deep = up(width, 16), up(channels, 16)
    for size in sizes:
        outputs = up(width + size if shortcut else width, 16)
        mma += tiles * (outputs // 8 * deep // 16 + 9 * wide // 8 * wide // 16 + up(size, 16) // 8 * wide // 16)
        bias += outputs + wide + size
    assert counts["mma_m16n8k16_f16"] == batch * mma
    state = pixels * up(channels, 4) * 2
    assert counts["global_load_bytes"] == batch * (256 * mma + state + pixels * bias * 4)
    assert counts["global_store_bytes"] == batch * state


@pytest.mark.parametrize(("channels", "side"), [(16, 16), (12, 9), (64, 8)])
def test_a_stage_is_one_launch(simt, channels, side):
    """It reads the map with its frame and writes it once, copies weights for what runs and gates in advance."""
    gates = torch.tensor([[1, 1], [0, 1], [0, 0]], dtype=torch.uint8)
    batch, x = len(gates), torch.randn(3, channels, side, side)
    kinds = (True, True)
    runners = [half_runner(residual_units(channels, (side, side), gated)) for gated in (kinds, ())]
    whole, rest = (count(simt, runner, x, gates[:, : runner.graph.gates]) for runner in runners)
    counts = {name: whole[name] - rest[name] for name in whole}
    ((begin, end, [(_, units, rows, down, across, tiles, _)]),) = runners[0].schedule(batch).stage_runs
    assert (begin, end, units) == (3, 9, 2) and down * across > 1
    assert counts["launches"] == 1 and counts["blocks"] == batch * down * across
    wide, deep, ran = up(channels, 16), up(channels, 4), int(gates.sum())
    mma = 0
    for y in range(0, side, rows):
        pieces = -(-side // 8) * -(-min(rows, side - y) // (2 * tiles))
        mma += pieces * wide // (8 * tiles) * 9 * tiles**2 * wide // 16
    assert counts["mma_m16n8k16_f16"] == 2 * ran * mma
    framed = sum(min(y + rows + 1, side) - max(y - 1, 0) for y in range(0, side, rows))
    state = across * framed * side * deep * 2
    units = len(kinds) * batch
    weights = (units + ran) * (down * 9 * wide * wide * 2 + down * wide * 4)
    decisions = units * down * across * (up(channels * 4, 16) + 16 + 4 + 1)  # weights and bias; threshold and forced
    pooled = batch * down * across * deep * 4
    assert counts["global_load_bytes"] == batch * state + weights + decisions + pooled
    wrote = int(gates.any(1).sum())
    assert counts["global_store_bytes"] == wrote * (side * side * deep * 2 + deep * 4) + units * (4 + 1)
    assert counts["global_atomics"] == batch + ran  # MACs, and a word for each gate that opens


def bottleneck_units(channels, width, side, units, with_units=True):
    """load, then pre-activation bottleneck units all of whose filters are chosen."""
    graph, weights = g.Graph(), Weights()
    x, first, inner = (graph.map(c, side) for c in (channels, width, width))
    graph.add(g.Load(dst=x, in_channels=channels))
    for _ in range(units if with_units else 0):
        gates = graph.gates
        with graph.region("bottleneck_unit"):
            for src, dst, window, mask, flags in (
                (x, first, ONE, gates, {"before": weights.norm(channels), "activation": "relu"}),
                (first, inner, WIDE, gates + width, {"activation": "relu"}),
                (inner, x, ONE, gates + 2 * width, {"accumulate": True}),
            ):
                conv = weights.conv(graph.maps[dst].channels, graph.maps[src].channels, window.rows)
                graph.add(g.Conv2d(src=src, dst=dst, window=window, out_mask=mask, **flags, **conv))
    graph.add(g.Store(src=x, in_channels=channels))
    return half_runner(graph)


@pytest.mark.long
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("channels", "width", "side"), [(32, 16, 16), (20, 6, 9)])
def test_bottleneck_units_are_one_launch(simt, channels, width, side, density):
    """It reads and writes the map once; of the weights it reads those of the filters that are on, in every block."""
    batch, units = 2, 2
    x = torch.randn(batch, channels, side, side)
    runners = [bottleneck_units(channels, width, side, units, with_units) for with_units in (True, False)]
    count_of_gates = units * (2 * width + channels)
    gates = (torch.rand(batch, count_of_gates, generator=torch.Generator().manual_seed(3)) < density).byte()
    whole, rest = (count(simt, runner, x, gates[:, : runner.graph.gates]) for runner in runners)
    counts = {name: whole[name] - rest[name] for name in whole}
    schedule = runners[0].schedule(batch)
    ((begin, end, rows, blocks, _),) = schedule.bottleneck_runs
    assert (begin, end) == (1, 1 + 3 * units) and blocks > 1
    assert counts["launches"] == 2  # one more lists the filters
    assert counts["blocks"] == batch * (blocks + 1)
    deep, wide = up(channels, 16), up(width, 16)
    mma = 0
    for on in gates.long().unflatten(1, (units, -1)).flatten(0, 1):
        first, conv, last = (-(-int(part.sum()) // 8) for part in on.split([width, width, channels]))
        for y in range(0, side, rows):
            tiles = -(-min(rows, side - y) * side // 16)
            mma += tiles * (first * deep + 9 * conv * wide + last * wide) // 16
    assert counts["mma_m16n8k16_f16"] == mma
    weights = 0
    for on in gates.long().unflatten(1, (units, -1)).flatten(0, 1):
        first, conv, last = (int(part.sum()) for part in on.split([width, width, channels]))
        weights += 2 * (first * deep + 9 * conv * wide + last * wide) + 4 * (first + conv + last)
    work = work_of(runners[0], gates)
    assert work[-2].name == "resident_bottleneck" and work[-2].l2_bytes >= blocks * (weights - 4 * int(gates.sum()))
    listed = units * (2 * up(width, 8) + up(channels, 8)) * 2 + units * 3 * 4
    pixels = side * side * up(channels, 4) * 2
    reads = batch * (pixels + blocks * (listed + units * 2 * deep * 2)) + blocks * weights
    made = batch * 2 * count_of_gates  # masks, to be listed and to be copied
    assert counts["global_load_bytes"] == reads + made
    assert counts["global_atomics"] == batch * blocks


def test_gates_take_no_launch_of_their_own(simt):
    """The last block of a sample that wrote a map decides the gates that read it."""
    for name in ("skipnet-rnn", "skipnet-ff-1"):
        model = make_planned(name)
        runner = dsn_kernels.accelerate(model, dtype=torch.float16, backend="simt").runner
        simt.reset_counters()
        runner(make_images(model, 2), torch.full((runner.graph.gates,), 0.5))
        runs = runner.schedule(2).stage_runs
        within = {i for begin, end, *_ in runs for i in range(begin, end)}
        gates = [i for i, node in enumerate(runner.graph.nodes) if isinstance(node, g.Gate)]
        outside = len(runner.graph.nodes) - len(within | set(gates))
        assert runs and len(gates) > 1 and simt.counters()["launches"] == outside + len(runs)
