"""What the analysis says of a graph holds in a run of it."""

import pytest
import torch
from graph_reference import Reference, run_graph
from small_graphs import NETWORKS, chosen_filters, make_images, random_gates, two_branches

from dsn_kernels import graph as g


def reads_of(graph):
    return list(zip(graph.nodes, g.find_reads(graph), strict=True))


def live(reads, forced):
    """Which channels hold data, bool [B, C]."""
    known = torch.cat([forced, torch.ones(len(forced), 1, dtype=torch.uint8)], 1)
    return known[:, g.gate_columns(reads.channels, forced.shape[1])].amin(2) != 0


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_that_hold_no_data_are_zeros(name):
    graph = NETWORKS[name]()
    forced = random_gates(graph, 5)
    run = Reference(graph, make_images(graph, 5).double(), None, forced)
    for node, reads in reads_of(graph):
        if any(reads.channels):
            parts = [run.maps[node.src], *([run.maps[node.guide]] if getattr(node, "guide", -1) >= 0 else [])]
            found, on = torch.cat([part.abs().amax((2, 3)) for part in parts], 1), live(reads, forced)
            assert not found[~on].any()
            assert found[on].count_nonzero() > on.sum() / 2, "a ReLU shuts some of the others"
            assert [c for c, gates in enumerate(reads.channels) if gates] == [c for part in reads.slices for c in part]
        run.step(node)


def test_a_channel_that_two_masks_choose():
    reads = next(reads for node, reads in reads_of(chosen_filters()) if isinstance(node, g.Transition))
    filters = [(41 + c,) for c in range(12)]
    pooled = [(5 + c, 53 + c) for c in range(18)]  # a pool of filters that are chosen, and again behind it
    assert list(reads.channels) == filters + pooled
    assert reads.slices == tuple(range(c, c + 1) for c in range(30)) and reads.one_by_one


def test_layers_and_a_guides():
    guided = next(reads for node, reads in reads_of(two_branches()) if getattr(node, "guide", -1) >= 0)
    own, guide = [(4,)] * 6 + [(5,)] * 6, [(2,)] * 6 + [(3,)] * 6
    assert list(guided.channels) == [()] * 12 + own + [()] * 10 + guide
    assert guided.slices == tuple(range(start, start + 6) for start in (12, 18, 34, 40))


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_need_no_weights(name):
    graph = NETWORKS[name]()
    gates = random_gates(graph, 3)
    bare = graph.without_weights()
    assert all(value.is_meta for node in bare.nodes for value in vars(node).values() if torch.is_tensor(value))
    assert torch.equal(g.count_macs(bare, gates), g.count_macs(graph, gates))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trace_tells_how_many_channels_are_read(name):
    graph = NETWORKS[name]()
    gates, nodes = random_gates(graph, 5), reads_of(graph)
    opened = {}  # channels that the layers of each dense block have added
    for work in g.trace(graph, gates):
        node, reads = nodes[work.index]
        if work.inputs is None:
            assert isinstance(node, g.DenseBlock) and work.op == "gate"
        elif work.layer < 0:
            assert torch.equal(work.inputs.expand(5), live(reads, gates).sum(1))
        else:
            before = opened.get(work.index, 0)
            assert torch.equal(work.inputs, node.in_channels + before + torch.zeros(5, dtype=torch.int64))
            opened[work.index] = before + work.ran * node.added


def test_gates_are_taken_where_a_score_exceeds_its_threshold():
    graph = two_branches()
    image = make_images(graph, 2)
    low, high = (run_graph(graph, image, torch.full((graph.gates,), limit)) for limit in (-1, 1))
    assert low.gates.all() and not high.gates.any()
    assert low.macs[0] > high.macs[0]
