"""The nodes of which any network is made, on the Triton kernels: values, gates and counts; and what is refused."""

from dataclasses import replace

import pytest
import torch
from graph_reference import check_graph, run_graph
from small_graphs import (
    DEPTHWISE,
    ONE,
    VOCABULARY,
    WIDE,
    Weights,
    convolution,
    dense_block,
    depthwise,
    excited,
    make_images,
    nested,
    random_gates,
    residual,
    width,
)

from dsn_kernels import graph as g
from dsn_models.errors import UserError

DTYPES = [torch.float32, torch.float16]
POOLS = {
    "uneven": ((7, 8), g.Window(3, 3, 2, 0, 0, 1, 1, 1)),
    "uneven-ceil": ((7, 9), g.Window(3, 2, 2, 1, 0, 1, 1, 0, True)),
    "ceil": ((9, 6), g.Window(2, 2, 2, ceil=True)),
    "wide-padding": ((5, 6), g.Window(5, 3, 1, 2, 1)),
    "shifted": ((6, 7), g.Window(2, 2, 2, -1, -1, 1, 2, 2)),
    "whole": ((4, 5), g.Window(4, 5)),
}


def make_runner(place, graph, dtype=torch.float32):
    from dsn_kernels.triton.runner import TritonRunner

    return TritonRunner(graph, dtype).to(place.device)


def check(place, graph, batch, dtype=torch.float32, forced=None):
    runner = make_runner(place, graph, dtype)
    return check_graph(runner, graph, make_images(graph, batch), dtype, forced, place.device)


def alone(channels, size, out_size, make):
    """The node that ``make(src, dst)`` gives, between the map that enters and the one that leaves."""
    graph = g.Graph()
    x, y = graph.map(channels, *size), graph.map(channels, *out_size)
    graph.add(g.Load(dst=x, in_channels=channels))
    graph.add(make(x, y))
    graph.add(g.Store(src=y, in_channels=channels))
    return graph


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VOCABULARY)
def test_values_and_counts(place, name, dtype):
    check(place, VOCABULARY[name](), 2, dtype)


@pytest.mark.parametrize("density, dtype", [(None, DTYPES[0]), *((d, t) for d in (0, 0.5, 1) for t in DTYPES)], ids=str)
def test_a_gate_within_a_gate(place, density, dtype):
    graph = nested()
    forced = None if density is None else random_gates(graph, 5, density)
    out = check(place, graph, 5, dtype, forced)
    for inner, outer in ((1, 0), (2, 1)):
        shut = out.gates[:, outer] == 0
        assert not out.gates[shut, inner].any() and not out.scores[shut, inner].any()


def test_recurrent_gates_within_a_gate(place):
    """The LSTM stands still where its gate is not reached."""
    graph = residual(recurrent=True)
    outer = {"only_if": 2}
    first = graph.nodes.index(next(node for node in graph.nodes if isinstance(node, g.Gate)))
    for i, node in enumerate(graph.nodes):
        if isinstance(node, g.Gate):
            graph.nodes[i] = replace(node, **outer)
    graph.nodes.insert(first, g.Decide(src=graph.nodes[first].src, in_channels=1, first_gate=2))
    for density in (0, 0.5, 1):
        out = check(place, graph, 4, torch.float32, random_gates(graph, 4, density))
        shut = out.gates[:, 2] == 0
        assert not out.gates[shut, :2].any() and not out.scores[shut, :2].any()


def test_padding(place):
    """The samples beyond ``count`` decide nothing and count nothing, within regions too."""
    graph = nested()
    runner, image = make_runner(place, graph), make_images(graph, 4).to(place.device)
    limits, forced = torch.zeros(graph.gates, device=place.device), random_gates(graph, 4, 1).to(place.device)
    out = runner(image, limits, forced, torch.tensor([2], dtype=torch.int32, device=place.device))
    whole = runner(image[:2], limits, forced[:2])
    assert torch.equal(out.map[:2], whole.map) and torch.equal(out.logits[:2], whole.logits)
    assert out.macs[:2].tolist() == whole.macs.tolist() and out.macs[2:].tolist() == [0, 0]
    assert out.gates.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("made", [nested, excited], ids=lambda made: made.__name__)
def test_compiles_and_takes_an_empty_batch(place, made):
    graph = made()
    runner, image = make_runner(place, graph), make_images(graph, 2).to(place.device)
    limits = torch.zeros(graph.gates, device=place.device)
    compiled = torch.compile(runner, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, limits), runner(image, limits))
    assert runner(image[:0], limits).map.shape == (0, *graph.stored)


@pytest.mark.parametrize("activation", ["relu6", "none"])
@pytest.mark.parametrize(("channels", "size", "window"), DEPTHWISE, ids=str)
def test_depthwise(place, channels, size, window, activation):
    check(place, depthwise(channels, size, window, activation=activation), 2)


def test_a_dilated_depthwise_convolution(place):
    window = g.Window(3, 2, 2, 2, 1, 3, 1, 0)
    check(place, depthwise(6, (11, 10), window), 2)


@pytest.mark.parametrize("kind", ["max", "average", "average of zeros too"])
@pytest.mark.parametrize("name", POOLS)
def test_pools(place, name, kind):
    size, window = POOLS[name]

    def make(x, y):
        fields = {"src": x, "dst": y, "in_channels": 5, "window": window}
        return g.MaxPool(**fields) if kind == "max" else g.AvgPool(**fields, count_padding=kind != "average")

    check(place, alone(5, size, window.output_size(*size), make), 2)


def test_an_average_of_large_values_in_float16(place):
    """The sum of a window exceeds float16."""
    graph = alone(3, (8, 8), (1, 1), lambda x, y: g.AvgPool(src=x, dst=y, in_channels=3, window=g.Window(8, 8)))
    image = torch.full((1, 3, 8, 8), 30000.0)
    out = make_runner(place, graph, torch.float16)(image.to(place.device), torch.zeros(0, device=place.device))
    assert out.map.flatten().tolist() == [30000.0] * 3


@pytest.mark.parametrize("kind", g.ACTIVATIONS)
def test_activations_of_extremes(place, kind):
    """As torch has them, of a NaN and infinities too."""
    graph = alone(1, (3, 4), (3, 4), lambda x, y: g.Pointwise(src=x, dst=y, in_channels=1, activation=kind))
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e4, -1e4, 100, -100, 6, -3, 3, 0, -0.5]).view(1, 1, 3, 4)
    limits = torch.zeros(0)
    out = make_runner(place, graph)(values.to(place.device), limits.to(place.device)).map.cpu()
    expected = run_graph(graph, values, limits, dtype=torch.float32).map
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 5])
@pytest.mark.parametrize("window", [ONE, WIDE], ids=["1x1", "3x3"])
def test_a_norm_before_few_channels(place, window, groups):
    fields = {"before": Weights().norm(10), "activation": "silu", "activated": 7}
    check(place, convolution(10, 10, (6, 5), window, groups, **fields), 2)


def test_groups_wider_than_a_tile(place):
    check(place, convolution(36, 260, (3, 4), ONE, 2, pool=True), 2, torch.float16)


def refused(place, change):
    """What the runner says of graphs whose second node is changed."""
    graph = alone(4, (6, 6), (6, 6), change)
    with pytest.raises(UserError) as error:
        make_runner(place, graph)
    return str(error.value)


def test_what_is_refused(place):
    wide = {"in_channels": 4, "window": WIDE}
    dilated = refused(place, lambda x, y: g.MaxPool(src=x, dst=y, **wide | {"window": WIDE._replace(dilation=2)}))
    assert dilated == "max_pool: a pool of dilation 2; expected 1"
    gated = refused(place, lambda x, y: g.Subsample(src=x, dst=y, in_channels=4, out_channels=4, stride=1, only_if=0))
    assert gated == "subsample: subsample is not served behind a gate; expected only_if -1"
    masked = {**Weights().conv(4, 2, 3), "in_channels": 4, "window": WIDE, "out_mask": 0, "where": "units.1"}
    groups = refused(place, lambda x, y: g.Conv2d(src=x, dst=y, groups=2, **masked))
    assert groups == "units.1: 2 groups are not served where channels or filters are chosen; expected 1"


def test_a_dense_block_among_other_nodes_is_refused(place):
    graph = dense_block((4, 4), channels=8, layers=1)
    image, block, _ = graph.nodes
    conv = g.Conv2d(src=block.dst, dst=graph.map(3, 4), window=ONE, **Weights().conv(3, width(block)))
    expected = "conv2d: conv2d is not served on the map of a dense block; expected a transition, a head or a store"
    with pytest.raises(UserError, match=expected):
        make_runner(place, g.Graph(graph.maps, [image, block, conv]))
    conv = replace(conv, src=(first := graph.map(8, 4)), dst=block.dst, **Weights().conv(8, 8))
    expected = (
        "dense_block: a dense block on the map of a conv2d is not served; expected that of a load, a stem or a tra"
    )
    with pytest.raises(UserError, match=expected):
        make_runner(place, g.Graph(graph.maps, [replace(image, dst=first), conv, block]))


def test_logits_behind_a_shut_gate_are_zeros(place):
    graph, weights = g.Graph(), Weights()
    x = graph.map(4, 3, 5)
    graph.add(g.Load(dst=x, in_channels=4))
    graph.add(g.Decide(src=x, in_channels=2, first_gate=0, src_offset=1))
    for i in range(2):
        graph.add(g.Linear(src=x, only_if=i, out_offset=3 * i, activation="sigmoid", **weights.linear(3, 4)))
    forced = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)
    out = check(place, graph, 2, torch.float32, forced)
    assert not out.logits[0, :3].any() and not out.logits[1, 3:].any()
