"""Networks without gated dense blocks on the CUDA kernels against the reference models in float64."""

from dataclasses import replace

import pytest
import small_graphs
import torch
from device_checks import accelerate, check_network, check_samples_alone
from graph_reference import check_graph, run_graph
from small_graphs import NETWORKS, ONE, WIDE, Weights, needs_gates, residual_units

import dsn_kernels
from csrc.simt.host_runner import HostRunner
from dsn_kernels import _C
from dsn_kernels import graph as g
from dsn_kernels.lower.cuda import lower
from dsn_kernels.runtime import PlanRunner, make_runner
from tests.networks import PLANNED, QUICK, make_images, make_planned, random_gates, zoo_name

BFLOAT16 = ("resnet-preact", "skipnet-rnn", "gaternet-all", "gunn")  # the same code as float16's but for a type


def nightly_unless(kept, *values):
    return pytest.param(*values, marks=() if kept else pytest.mark.slow)


def is_quick(name):
    return zoo_name(name) in QUICK


CASES = [nightly_unless(is_quick(name), name, torch.float32) for name in PLANNED]
CASES += [(name, torch.float16) for name in PLANNED] + [(name, torch.bfloat16) for name in BFLOAT16]
MASKED = [
    name
    for name in PLANNED
    if name.startswith("gaternet") and name not in ("gaternet-densenet-last", "gaternet-inception-last")
]
GATED = [name for name in PLANNED if name.startswith("skipnet")]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_equals_the_reference(place, name, dtype):
    place.seeded(2)
    model = make_planned(name)
    fast, x = accelerate(place, model, dtype), make_images(model, 2)
    check_network(place, model, fast, x, dtype)


def check(place, graph, batch, dtype, forced=None):
    runner = make_runner(graph, dtype, place.backend).to(place.device)
    return check_graph(runner, graph, small_graphs.make_images(graph, batch), dtype, forced, place.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_node(place, name, dtype):
    place.seeded(9)
    graph = NETWORKS[name]()
    free = dtype == torch.float32 and not needs_gates(graph)
    check(place, graph, 3, dtype, None if free else small_graphs.random_gates(graph, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("channels", "filters", "side", "window"),
    [
        (8, 300, (3, 3), ONE),  # more columns than a block takes
        (300, 8, (4, 5), WIDE._replace(stride=2)),  # many passes over the input
        (20, 36, (20, 33), WIDE),  # several tiles
        (3, 5, (1, 70), WIDE._replace(stride=2)),
        (7, 1, (2, 1), ONE._replace(stride=2)),
    ],
)
def test_convolution(place, channels, filters, side, window, dtype):
    place.seeded(4)
    graph, weights = g.Graph(), Weights()
    x, y = graph.map(channels, *side), graph.map(filters, *window.output_size(*side))
    graph.add(g.Load(dst=x, in_channels=channels))
    graph.add(g.Conv2d(src=x, dst=y, window=window, **weights.conv(filters, channels, window.rows)))
    graph.add(g.Store(src=y, in_channels=filters))
    check(place, graph, 2, dtype)


# Beyond those that residual networks have.
WINDOWS = [
    g.Window(1, 7, 1, 0, 3),
    g.Window(7, 1, 1, 3, 0),
    g.Window(3, 3, 1),
    g.Window(3, 3, 2),
    g.Window(5, 5, 1, 2, 2),
    g.Window(7, 7, 3, 3, 3),
    g.Window(2, 2, 2),
    g.Window(1, 1, 3),
]


@pytest.mark.parametrize(("masked", "dtype"), [(False, torch.float32), (True, torch.float16)], ids=["all", "chosen"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_any_window(place, window, masked, dtype):
    """Behind a 1x1 whose filters are chosen: the inputs that hold data are read, wherever they are."""
    place.seeded(6)
    graph, weights = g.Graph(), Weights()
    x, middle, pooled = graph.map(5, 11, 9), graph.map(18, 11, 9), graph.map(18, 11, 9)
    y = graph.map(10, *window.output_size(11, 9))
    first, last = (0, 18) if masked else (-1, -1)
    graph.add(g.Load(dst=x, in_channels=5))
    graph.add(g.Conv2d(src=x, dst=middle, window=ONE, activation="relu", out_mask=first, **weights.conv(18, 5)))
    graph.add(g.MaxPool(src=middle, dst=pooled, in_channels=18, window=ONE))  # its filters stay in their places
    conv = weights.conv(10, 18, window.rows, window.columns)
    graph.add(g.Conv2d(src=middle, dst=y, window=window, out_mask=last, **conv))
    graph.add(g.Store(src=y, in_channels=10))
    forced = small_graphs.random_gates(graph, 3) if masked else None
    filters, outputs = (torch.ones(3, 28, dtype=torch.uint8) if forced is None else forced).split([18, 10], 1)
    if masked:
        outputs[0], filters[1] = 1, 0  # all filters; no inputs
    out = check(place, graph, 3, dtype, forced)
    each = graph.maps[y].pixels * window.taps
    assert torch.equal(out.macs.cpu(), 99 * 5 * filters.sum(1) + each * filters.sum(1) * outputs.sum(1))


@pytest.mark.parametrize(
    ("window", "offset"),
    [(g.Window(2, 2, 2), 8), (g.Window(3, 3, 2), 3), (g.Window(3, 3, 1, 1, 1), 8), (g.Window(5, 5, 3, 2, 2), 3)],
    ids=str,
)
@pytest.mark.parametrize("pool", [g.MaxPool, g.AvgPool], ids=lambda pool: pool.op)
def test_pools(place, pool, window, offset):
    """Of any window, behind other channels of their map."""
    place.seeded(7)
    graph, weights = g.Graph(), Weights()
    x, y = graph.map(6, 9, 7), graph.map(offset + 6, *window.output_size(9, 7))
    graph.add(g.Load(dst=x, in_channels=6))
    graph.add(g.Conv2d(src=x, dst=y, window=window, **weights.conv(offset, 6, window.rows)))
    graph.add(pool(src=x, dst=y, in_channels=6, window=window, out_offset=offset))
    graph.add(g.Store(src=y, in_channels=offset + 6))
    check(place, graph, 2, torch.float32)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("count", [5, 66])  # decided by the launch that pools, and by launches of their own
def test_gates_of_one_map(place, kind, count):
    place.seeded(5)
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(count, 6, generator=generator), torch.randn(count, generator=generator)
    graph = g.Graph()
    x = graph.map(6, 4, 5)
    graph.add(g.Load(dst=x, in_channels=6))
    graph.add(g.PoolSums(src=x, in_channels=6))
    for i in range(count):
        part = slice(i, i + 1)
        graph.add(g.Gate(src=x, in_channels=6, first_gate=i, weight=weight[part].double(), bias=bias[part].double()))
    plan = lower(graph, torch.float32)  # of a graph such gates are soft; the kernels know both kinds
    gates = [{"gate": _C.GATES[kind]} if isinstance(node, g.Gate) else {} for node in graph.nodes]
    plan = replace(plan, code=[fields | own for fields, own in zip(plan.code, gates, strict=True)])
    runner = {"simt": HostRunner, "cuda": PlanRunner}[place.backend](plan).to(place.device)
    images, limits = torch.randn(3, 6, 4, 5, generator=generator), torch.rand(count, generator=generator)
    out = runner(images.to(place.device), limits.to(place.device))
    z = images.double().mean((2, 3)) @ weight.double().T + bias
    scores = (z + 0.5).clamp(0, 1) if kind == "hard" else z.sigmoid()
    torch.testing.assert_close(out.scores.cpu().double(), scores, rtol=1e-5, atol=1e-5)
    assert torch.equal(out.gates.cpu().bool(), scores > limits)
    assert out.macs.tolist() == [6 * count] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("channels", "size", "batch", "forced"),
    [
        (16, (8, 8), 2, False),
        (12, (7, 13), 3, True),  # strips and rows that the map does not fill
        (64, (8, 8), 2, True),  # blocks and warps share columns and k-steps
        (40, (3, 9), 2, False),
        (20, (1, 1), 2, True),
        (8, (4, 8), 140, True),  # more samples than multiprocessors: one block for each
    ],
)
def test_residual_units(place, channels, size, batch, forced, dtype):
    """Of which a launch does all."""
    place.seeded(8)
    graph = residual_units(channels, size, (False, True, True, True))
    if place.backend == "simt":
        assert len(HostRunner(lower(graph, dtype)).schedule(batch).stage_runs) == 1
    out = check(place, graph, batch, dtype, small_graphs.random_gates(graph, batch) if forced else None)
    taken, scores = out.gates.cpu(), out.scores.cpu().double()
    exact = run_graph(graph, small_graphs.make_images(graph, batch), None, taken)
    torch.testing.assert_close(scores, exact.scores, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert forced or torch.equal(taken.bool(), scores > 0.5)
    each = 2 * 9 * channels**2 * size[0] * size[1]
    assert torch.equal(out.macs.cpu(), each * (1 + taken.sum(1)) + 3 * channels + channels)


NEARLY = ("gaternet-all", "gaternet-preact", "gaternet-inception")  # of some masks all filters are then computed


@pytest.mark.parametrize(
    ("name", "density"),
    [
        *(nightly_unless(is_quick(n) or d == 0.5, n, d) for n in GATED + MASKED for d in (0.0, 0.5, 1.0)),
        *((name, 0.93) for name in NEARLY),
    ],
)
def test_forced_gates(place, name, density):
    place.seeded(3)
    model = make_planned(name)
    fast = accelerate(place, model, torch.float16)
    check_network(place, model, fast, make_images(model, 3), torch.float16, random_gates(fast, 3, density))


@pytest.mark.parametrize("name", ["resnet-pad", "skipnet-rnn", "skipnet-ff-2", "gaternet-all", "gunn"])
def test_graphs_give_what_single_launches_give(gpu, name):
    model = make_planned(name)
    plain, graphed = (
        dsn_kernels.accelerate(model, dtype=torch.float16, device=gpu, cuda_graph=sizes) for sizes in (False, (2, 8))
    )
    for batch in (1, 2, 5, 8):
        x = make_images(model, batch).to(gpu)
        for _ in range(2):
            assert torch.equal(graphed(x), plain(x))
        assert torch.equal(graphed.last_macs, plain.last_macs)


@pytest.mark.parametrize("name", ["skipnet-rnn", "skipnet-ff-1", "gaternet-preact", "gunn"])
def test_any_order_of_threads(host, name):
    """Pooled vectors, gates and lists come from whichever block is last: no sum depends on which that is."""
    model = make_planned(name)
    fast = accelerate(host, model, torch.float16)
    x, forced = make_images(model, 2), random_gates(fast, 2, 0.5) if name in MASKED else None
    found = []
    for seed in (11, 12, 13):
        host.seeded(seed)
        found.append((fast(x, forced_gates=forced) if forced else fast(x), fast.last_macs))
    for logits, macs in found[1:]:
        assert torch.equal(logits, found[0][0]) and torch.equal(macs, found[0][1])


@pytest.mark.parametrize("name", ["skipnet-rnn", "gaternet-all"])
def test_a_sample_does_not_depend_on_its_batch(place, name):
    check_samples_alone(place, make_planned(name), 3)


def test_masks_must_be_given(place):
    fast = accelerate(place, make_planned("gaternet-all"), torch.float16)
    runner = fast.runner
    x = make_images(fast, 1).to(place.device)
    with pytest.raises(RuntimeError, match="forced_?.?gates must say which filters run"):
        runner(x, torch.full((runner.graph.gates,), 0.5, device=place.device))
