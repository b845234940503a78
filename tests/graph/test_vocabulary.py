"""The nodes of which any network is made, on the CPU: values, gates and counts."""

from dataclasses import replace

import pytest
import torch
from graph_reference import check_graph
from small_graphs import (
    VOCABULARY,
    convolution,
    dense_block,
    joined,
    make_images,
    nested,
    random_gates,
    residual_units,
    transition,
)

from dsn_kernels import _C
from dsn_kernels import graph as g
from dsn_kernels.lower.cpu import lower
from dsn_kernels.runtime import PlanRunner, make_runner


def check(graph, batch, forced=None):
    runner = make_runner(graph, torch.float32, "cpu")
    return check_graph(runner, graph, make_images(graph, batch), torch.float32, forced)


@pytest.mark.parametrize("name", VOCABULARY)
def test_values_and_counts(name):
    check(VOCABULARY[name](), 2)


@pytest.mark.parametrize("name", VOCABULARY)
def test_threads_share_a_sample(name):
    graph, threads = VOCABULARY[name](), torch.get_num_threads()
    image, limits = make_images(graph, 1), torch.zeros(0)
    alone = make_runner(graph, torch.float32, "cpu")(image, limits)
    torch.set_num_threads(3)
    try:
        shared = make_runner(graph, torch.float32, "cpu")(image, limits)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(shared.map, alone.map) and torch.equal(shared.macs, alone.macs)


# Rows that end within tiles or with them, of one vector or several, and maps of few rows.
SIZES = [(1, 64), (3, 64), (5, 128), (2, 96), (9, 160), (64, 64), (56, 56), (41, 47), (33, 63), (3, 33), (32, 31)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_maps_of_any_width(size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for channels in (
            5,
            13,
            24,
        ):  # with 24 by Winograd's algorithm where it pays
            check(residual_units(channels, size, [True, False]), 3)
            check(convolution(channels, 7, size, g.Window(3, 3, 2, 1, 1)), 3)
            check(convolution(channels, 4, size, g.Window(5, 5, 1, 2, 2)), 3)
        check(dense_block(size, channels=13, layers=2, growth=9, bottleneck=True), 3)
        check(dense_block(size, channels=13, layers=2, growth=5, bottleneck=False), 3)
        if min(size) > 1:
            check(transition(13, 7, size), 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("density", [None, 0, 0.5, 1])
def test_a_gate_within_a_gate(density):
    graph = nested()
    out = check(graph, 6, None if density is None else random_gates(graph, 6, density))
    assert not (out.gates[:, 1] & ~out.gates[:, 0] & 1).any() and not (out.gates[:, 2] & ~out.gates[:, 1] & 1).any()


@pytest.mark.parametrize(
    ("node", "wrong"),
    [
        (4, {"pad_rows": 3}),  # a pool's window before the map
        (4, {"pad_rows": -10}),  # one behind it
        (4, {"dilation": 2}),
        (4, {"flags": _C.FLAGS["winograd"]}),
        (4, {"src_offset": 11}),
        (1, {"src_offset": 4}),
        (1, {"out_offset": 1}),  # behind what is not there
        (2, {"groups": 4}),
        (2, {"factor": 1}),
        (2, {"activation": len(_C.ACTIVATIONS)}),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit(node, wrong):
    plan = lower(joined())
    code = [fields | wrong if i == node else fields for i, fields in enumerate(plan.code)]
    with pytest.raises(RuntimeError, match=f"instruction {node} of the plan"):
        PlanRunner(replace(plan, code=code))(make_images(plan.graph, 1), torch.zeros(0))


def test_a_filter_that_is_off_leaves_zero():
    with pytest.raises(ValueError, match="zero, which sigmoid does not keep"):
        convolution(3, 4, (5, 5), g.Window(1, 1), activation="sigmoid", out_mask=0)
