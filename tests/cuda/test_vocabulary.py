"""The nodes of which any network is made, on the CUDA kernels: values, gates and counts."""

import pytest
import torch
from graph_reference import check_graph
from small_graphs import VOCABULARY, make_images, nested, random_gates

from dsn_kernels.runtime import make_runner

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(place, graph, batch, dtype, forced=None):
    place.seeded(9)
    runner = make_runner(graph, dtype, place.backend).to(place.device)
    return check_graph(runner, graph, make_images(graph, batch), dtype, forced, place.device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VOCABULARY)
def test_values_and_counts(place, name, dtype):
    check(place, VOCABULARY[name](), 2, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [None, 0, 0.5, 1])
def test_a_gate_within_a_gate(place, density, dtype):
    graph = nested()
    out = check(place, graph, 6, dtype, None if density is None else random_gates(graph, 6, density))
    assert not (out.gates[:, 1] & ~out.gates[:, 0] & 1).any() and not (out.gates[:, 2] & ~out.gates[:, 1] & 1).any()
