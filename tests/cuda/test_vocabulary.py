"""The nodes of which any network is made, on the CUDA kernels: values, gates and counts."""

import pytest
import torch
from graph_reference import check_graph
from small_graphs import (
    ONE,
    VOCABULARY,
    WIDE,
    Weights,
    convolution,
    dense_block,
    make_images,
    nested,
    random_gates,
    residual_units,
)

from dsn_kernels import graph as g
from dsn_kernels.lower.cuda import lower
from dsn_kernels.runtime import make_runner
from dsn_models.errors import UserError

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


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("size", [(3, 64), (5, 128), (7, 47)], ids=str)
def test_maps_of_any_width(place, size, dtype):
    check(place, residual_units(13, size, [True, False]), 2, dtype)
    check(place, convolution(13, 7, size, g.Window(3, 3, 2, 1, 1)), 2, dtype)
    check(place, dense_block(size, channels=13, layers=2, growth=9, bottleneck=True), 2, dtype)


class Builder(g.Graph):
    """A graph that begins with a map x, and random weights for its nodes."""

    def __init__(self, channels, height, width):
        super().__init__()
        self.weights = Weights()
        self.x = self.map(channels, height, width)
        self.add(g.Load(dst=self.x, in_channels=channels))

    def conv(self, src, dst, in_channels, out_channels, window=WIDE, groups=1, **fields):
        own = self.weights.conv(out_channels, in_channels // groups, window.rows) | {"in_channels": in_channels}
        self.add(g.Conv2d(src=src, dst=dst, window=window, groups=groups, **own, **fields))

    def end(self, map):
        self.add(g.Store(src=map, in_channels=self.maps[map].channels))
        return self


def groups_of_parts():
    """Groups that begin within four channels, behind a BN-ReLU, onto what is there, and beside it; pooled."""
    b = Builder(23, 9, 7)
    y, z = b.map(24, 9, 7), b.map(37, 9, 7)
    b.conv(b.x, y, 18, 24, groups=3, src_offset=2, before=b.weights.norm(18), pool=True)
    b.add(g.Linear(src=y, **b.weights.linear(5, 24)))
    b.conv(y, z, 24, 12, ONE)
    b.conv(y, z, 20, 25, groups=5, src_offset=1, out_offset=12, activation="hardswish", activated=14)
    b.conv(y, z, 24, 24, groups=3, accumulate=True, activation="relu", out_offset=8)
    b.conv(z, y, 35, 24, ONE, src_offset=2, accumulate=True)
    return b.end(y)


def many_inputs():
    """Groups so deep that clusters share the inputs of each out."""
    b = Builder(1024, 1, 1)
    y = b.map(256, 1, 1)
    b.conv(b.x, y, 1024, 256, ONE, groups=2, activation="silu")
    return b.end(y)


def many_columns():
    """Convolutions of many filters with an activation."""
    b = Builder(64, 8, 8)
    y, z = b.map(256, 8, 8), b.map(64, 4, 4)
    b.conv(b.x, y, 64, 256, ONE, activation="silu", pool=True)
    b.add(g.Linear(src=y, **b.weights.linear(5, 256)))
    b.conv(y, z, 256, 64, WIDE._replace(stride=2), groups=2, activation="silu")
    return b.end(z)


def chosen_and_activated():
    """Filters that a mask chooses, with an activation: in their places, added, and worked on in place."""
    b = Builder(6, 7, 6)
    y, z, first = b.map(20, 7, 6), b.map(20, 7, 6), b.map(20, 7, 6)
    b.conv(b.x, y, 6, 20, activation="silu", out_mask=0)
    b.add(g.Pointwise(src=y, dst=y, in_channels=20, activation="tanh"))
    b.conv(y, z, 20, 20, activation="none")
    b.conv(y, z, 20, 20, activation="hardswish", out_mask=20, accumulate=True)
    b.conv(b.x, first, 6, 20, ONE, activation="relu6", out_mask=40)
    b.add(g.Upsample(src=first, dst=z, in_channels=20, stride=1, accumulate=True, activation="tanh"))
    return b.end(z)


def decided_between():
    """A gate of a map's pooled vector, behind a unit that another instruction's decision bypasses."""
    b = Builder(16, 6, 6)
    inner, vector = b.map(16, 6, 6), b.map(3, 1)
    b.add(g.PoolSums(src=b.x, in_channels=16))
    b.add(g.FullyConnected(src=b.x, dst=vector, activation="sigmoid", **b.weights.linear(3, 16)))
    b.add(g.Decide(src=vector, in_channels=3, first_gate=0))
    b.conv(b.x, inner, 16, 16, activation="relu", only_if=0)
    b.conv(inner, b.x, 16, 16, activation="relu", accumulate=True, pool=True, only_if=0)
    b.add(g.Gate(src=b.x, first_gate=3, **b.weights.linear(1, 16)))
    b.conv(b.x, inner, 16, 16, activation="relu", only_if=3)
    b.conv(inner, b.x, 16, 16, accumulate=True, only_if=3)
    b.add(g.PoolSums(src=b.x, in_channels=16, only_if=1))
    b.add(g.Gate(src=b.x, first_gate=4, only_if=1, **b.weights.linear(1, 16)))
    b.conv(b.x, inner, 16, 16, activation="relu6", only_if=4)
    b.conv(inner, b.x, 16, 16, accumulate=True, only_if=4)
    return b.end(b.x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("made", "batch"), [(groups_of_parts, 3), (many_columns, 3), (many_inputs, 1)])
def test_parts_of_maps_and_wide_ones(place, made, batch, dtype):
    check(place, made(), batch, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("density", [0, 0.5, 1])
def test_chosen_filters_with_an_activation(place, density, dtype):
    graph = chosen_and_activated()
    check(place, graph, 3, dtype, random_gates(graph, 3, density))


@pytest.mark.parametrize("density", [None, 0, 0.5, 1])
def test_a_decision_between_a_map_and_its_gate(place, density):
    graph = decided_between()
    check(place, graph, 5, torch.float32, None if density is None else random_gates(graph, 5, density))


def test_filters_that_are_off_and_would_not_stay_zero():
    b = Builder(3, 4, 4)
    y = b.map(8, 4, 4)
    b.conv(b.x, y, 3, 8, out_mask=0)
    b.add(g.Pointwise(src=y, dst=y, in_channels=8, activation="sigmoid", where="gate"))
    with pytest.raises(UserError, match="gate makes filters that are off more than zero"):
        lower(b.end(y), torch.float32)


def test_a_gate_that_nobody_decides():
    b = Builder(3, 4, 4)
    y = b.map(8, 4, 4)
    b.conv(b.x, y, 3, 8, only_if=0)
    with pytest.raises(UserError, match="conv2d waits for a gate that no gate node decides"):
        lower(b.end(y), torch.float32)
