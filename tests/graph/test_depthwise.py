"""A depthwise convolution on the CPU: values, counts, and what its node tells."""

from dataclasses import replace

import pytest
import torch
from graph_reference import check_graph
from small_graphs import DEPTHWISE, depthwise, make_images, random_gates, separable, separable_filters

from dsn_kernels import graph as g
from dsn_kernels.lower.cpu import lower
from dsn_kernels.runtime import PlanRunner, make_runner


def check(graph, batch, forced=None):
    return check_graph(
        make_runner(graph, torch.float32, "cpu"), graph, make_images(graph, batch), torch.float32, forced
    )


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(("channels", "size", "window"), DEPTHWISE, ids=str)
def test_windows(channels, size, window, activation):
    graph = depthwise(channels, size, window, activation=activation)
    out = check(graph, 2)
    height, width = window.output_size(*size)
    assert out.macs.tolist() == [channels * height * width * window.taps] * 2


@pytest.mark.parametrize("density", [None, 0, 0.5, 1])
def test_gates(density):
    graph = separable()
    forced = None if density is None else random_gates(graph, 4, density)
    out = check(graph, 4, forced)
    unit, part = 90 * (2 * 10 * 23 + 23 * 25), 25 * 10 * 9
    always = 90 * 27 * 10 + 2 * 10 + 25 * 9 * 10 * 13 + 9 * 9 * 13 + 6 * 6 * 13 + 4 * 13
    assert torch.equal(out.macs, always + out.gates.long() @ torch.tensor([unit, part]))


@pytest.mark.parametrize("density", [0, 0.5, 1])
def test_channels_without_data_are_zeros(density):
    graph = separable_filters()
    check(graph, 3, random_gates(graph, 3, density))


def test_threads_share_a_sample():
    graph, threads = depthwise(19, (20, 21), g.Window(3, 3, 1, 1, 1)), torch.get_num_threads()
    image, limits = make_images(graph, 1), torch.zeros(0)
    alone = make_runner(graph, torch.float32, "cpu")(image, limits)
    torch.set_num_threads(3)
    try:
        shared = make_runner(graph, torch.float32, "cpu")(image, limits)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(shared.map, alone.map) and torch.equal(shared.macs, alone.macs)


def test_a_node_tells_what_it_does():
    node = depthwise(5, (9, 8), g.Window(3, 3, 2, 1, 1), only_if=6).nodes[1]
    assert node.gates_end() == 7 and node.output_size(9, 8) == (5, 4)
    assert node.written([(1,)] * 5) == (0, [()] * 5), "it has a bias, so that all its channels hold data"


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_channels": 6},
        {"stride": 0},
        {"columns": 0},
        {"taps": 8},
        {"src_offset": 1},
        {"out_offset": 1},
        {"out_mask": 0},
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit(wrong):
    plan = lower(depthwise(5, (8, 8), g.Window(3, 3, 1, 1, 1)))
    runner = PlanRunner(replace(plan, code=[plan.code[0], plan.code[1] | wrong, plan.code[2]]))
    with pytest.raises(RuntimeError, match="instruction 1 of the plan does not fit its buffers"):
        runner(torch.zeros(1, 5, 8, 8), torch.zeros(0))
