"""The nodes of which any network is made, on the CPU: values, gates and counts."""

from dataclasses import replace

import pytest
import torch
from graph_reference import check_graph
from small_graphs import VOCABULARY, convolution, joined, make_images, nested, random_gates

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
