"""Depthwise convolutions on the CUDA kernels."""

import pytest
import torch
from graph_reference import check_graph
from small_graphs import DEPTHWISE, depthwise, make_images, random_gates, separable, separable_filters

from dsn_kernels.runtime import make_runner


def check(place, graph, batch, dtype, forced=None):
    runner = make_runner(graph, dtype, place.backend).to(place.device)
    return check_graph(runner, graph, make_images(graph, batch), dtype, forced, place.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "size", "window"), DEPTHWISE, ids=str)
def test_windows(place, channels, size, window, dtype):
    place.seeded(9)
    check(place, depthwise(channels, size, window, activation="relu"), 2, dtype)


@pytest.mark.parametrize(
    ("density", "dtype"),
    [(None, torch.float32), *((d, t) for d in (0, 0.5, 1) for t in (torch.float32, torch.float16))],
)
def test_gates(place, density, dtype):
    place.seeded(9)
    graph = separable()
    check(place, graph, 3, dtype, None if density is None else random_gates(graph, 3, density))


@pytest.mark.parametrize("density", [0, 0.5, 1])
def test_channels_without_data_are_zeros(place, density):
    place.seeded(9)
    graph = separable_filters()
    check(place, graph, 3, torch.float32, random_gates(graph, 3, density))
