"""Convolutions whose filters are chosen: samples with equal masks side by side, weights gathered once for what a block
walks, all filters computed where nearly all are on."""

import pytest
import torch
from graph_reference import check_graph
from small_graphs import ONE, WIDE, Weights, make_images

from csrc.simt import host_runner
from csrc.simt.host_runner import HostRunner
from dsn_kernels import graph as g
from dsn_kernels.lower.cuda import lower

MIDDLE, LAST = 40, 24


def two_convolutions(side=6):
    """load, 1x1 whose chosen filters are stored side by side, 3x3 that reads them by the same mask, store."""
    graph, weights = g.Graph(), Weights()
    x, middle, y = graph.map(6, side), graph.map(MIDDLE, side), graph.map(LAST, side)
    graph.add(g.Load(dst=x, in_channels=6))
    graph.add(g.Conv2d(src=x, dst=middle, window=ONE, activation="relu", out_mask=0, **weights.conv(MIDDLE, 6)))
    graph.add(g.Conv2d(src=middle, dst=y, window=WIDE, out_mask=MIDDLE, **weights.conv(LAST, MIDDLE, 3)))
    graph.add(g.Store(src=y, in_channels=LAST))
    return graph


def masks_of(patterns, of_sample, on=0.5):
    """[B, 64]: every pattern has the same number of filters on in each convolution."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for _ in range(patterns):
        parts = [torch.randperm(n, generator=generator) < int(n * on) for n in (MIDDLE, LAST)]
        rows.append(torch.cat(parts))
    return torch.stack(rows)[torch.tensor(of_sample)].byte()


@pytest.fixture
def small_device(runner_module, monkeypatch):
    """One multiprocessor, so that blocks walk many tiles, and a cache so slow that equal masks are worth grouping."""
    monkeypatch.setattr(host_runner, "MULTIPROCESSORS", 1)
    monkeypatch.setattr(host_runner, "L2_RATE", 1.0)
    return runner_module


def run(runner, image, masks, count=None):
    return runner(image, torch.full((masks.shape[1],), 0.5), masks, count)


@pytest.mark.parametrize(
    ("side", "dtype"), [(6, torch.float32), (6, torch.float16), (17, torch.float16), (6, torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("seed", range(2))
def test_groups_of_equal_masks(small_device, side, dtype, seed):
    """Patterns in any order beside nearly all filters, all of them, none."""
    small_device.configure(seed=seed)
    graph = two_convolutions(side)
    masks = masks_of(3, [0, 1, 0, 2, 1, 0, 2, 0, 1])
    masks[3], masks[6], masks[7, 2:] = 0, 1, 1
    image, runner = make_images(graph, 9), HostRunner(lower(graph, dtype))
    network = runner.schedule(9)
    assert network.grouped and all(tile[10] > 1 for tile in network.conv_tiles)
    out = check_graph(runner, graph, image, dtype, masks)
    on = masks[:, :MIDDLE].sum(1), masks[:, MIDDLE:].sum(1)
    assert torch.equal(out.macs, side * side * (6 * on[0] + 9 * on[0] * on[1]))

    padded = run(runner, image, masks, torch.tensor([7], dtype=torch.int32))
    assert torch.equal(padded.map[:7], out.map[:7]), "whatever samples are beside them"
    assert padded.map[7:].isnan().all() and (padded.macs[7:] == 0).all(), "padding is not computed"


def weight_bytes(simt, runner, image, masks):
    """Loads of a run but for those of the kernels that compare masks."""
    simt.reset_counters()
    run(runner, image, masks)
    whole = simt.counters()["global_load_bytes"]
    batch, gates = masks.shape
    outputs = [torch.empty(batch, dtype=torch.int32), torch.empty(batch).long()]
    simt.reset_counters()
    simt.group_by_pattern(simt.input(masks), *map(simt.output, outputs), batch, gates)
    return whole - simt.counters()["global_load_bytes"]


def test_weights_are_gathered_once_for_equal_masks(small_device):
    """Exactly the gathers that are left out are not read: of weights and lists, by the blocks that walk the samples."""
    simt, graph = small_device, two_convolutions()
    simt.configure(seed=0)
    image, runner = make_images(graph, 8), HostRunner(lower(graph, torch.float16))
    (one, two), batch = runner.schedule(8).conv_tiles, 8
    assert one[2] * one[3] == two[2] * two[3] == 1, "a sample is a tile"

    def gathers(tile, of_sample):
        """(samples, columns) that are gathered: a block walks columns outermost."""
        order = sorted(range(batch), key=lambda s: (of_sample.index(of_sample[s]), s))
        items = [(c, of_sample[s]) for c in range(tile[5]) for s in order]
        return [items[i] for i in range(len(items)) if i % tile[10] == 0 or items[i] != items[i - 1]]

    def expected(of_sample):
        on, last_on, total = MIDDLE // 2, LAST // 2, 0
        for tile, filters, each in ((one, on, 6 * 2 + 2), (two, last_on, 9 * on * 2 + 2)):
            for column, _ in gathers(tile, of_sample):
                here = min(tile[4], filters - column * tile[4])
                total += max(0, here) * each + (on * 2 if tile is two and here > 0 else 0)
        return total

    kinds = {"different": list(range(8)), "two": [0, 1] * 4, "equal": [0] * 8}
    loaded = {name: weight_bytes(simt, runner, image, masks_of(8, kind)) for name, kind in kinds.items()}
    for name in ("two", "equal"):
        saved = expected(kinds["different"]) - expected(kinds[name])
        assert saved > 0 and loaded["different"] - loaded[name] == saved, name


def test_nearly_all_filters_are_not_gathered(runner_module):
    """Seven eighths on: the weights come by asynchronous copies, as for all of them, and off filters are zero."""
    simt, graph = runner_module, two_convolutions()
    simt.configure(seed=0)
    image, runner = make_images(graph, 2), HostRunner(lower(graph, torch.float16))

    def copies(on):
        simt.reset_counters()
        masks = masks_of(1, [0, 0], on)
        out = check_graph(runner, graph, image, torch.float16, masks)
        assert (out.map[:, ~masks[0, MIDDLE:].bool()] == 0).all()
        return simt.counters()["cp_async"], simt.counters()["mma_m16n8k16_f16"]

    assert copies(7 / 8) == copies(1) > copies(6 / 8)


def test_grouping_must_pay(runner_module):
    """Its launches and comparisons cost more than the gathers of a few samples, and less than those of many."""
    runner = HostRunner(lower(two_convolutions(), torch.float16))
    assert not runner.schedule(3).grouped
    assert not any(tile[10] for tile in runner.schedule(3).conv_tiles), "a block has a tile at most"
    assert not runner.schedule(4096).grouped
