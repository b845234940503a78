"""Every node of a graph on the Triton kernels, in networks made by hand, against plain torch in float64."""

import pytest
import torch
from graph_reference import check_graph
from small_graphs import (
    NETWORKS,
    VOCABULARY,
    Weights,
    chosen_filters,
    make_images,
    needs_gates,
    nested,
    random_gates,
    residual,
)

from dsn_kernels import graph as g
from dsn_models.errors import UserError


def make_runner(place, graph, dtype=torch.float32):
    from dsn_kernels.triton.runner import TritonRunner

    return TritonRunner(graph, dtype).to(place.device)


def check(place, graph, batch, dtype, forced=None):
    runner = make_runner(place, graph, dtype)
    return check_graph(runner, graph, make_images(graph, batch), dtype, forced, place.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_plain_torch(place, name, dtype):
    graph = NETWORKS[name]()
    free = dtype == torch.float32 and not needs_gates(graph)
    check(place, graph, 3, dtype, None if free else random_gates(graph, 3))


@pytest.mark.parametrize("density", [0, 1])
@pytest.mark.parametrize("name", ["two branches", "recurrent gates", "chosen filters"])
def test_all_open_and_all_shut(place, name, density):
    graph = NETWORKS[name]()
    check(place, graph, 2, torch.float32, random_gates(graph, 2, density))


def test_samples_of_a_tile_are_far_apart(place):
    """Two of seventy samples run a unit: one from each word."""
    graph = residual(recurrent=True)
    forced = random_gates(graph, 70, 0)
    forced[[3, 68]] = 1
    check(place, graph, 70, torch.float16, forced)


def test_samples_that_choose_alike_share_tiles(place):
    """Neither outputs nor counts tell; a sample alone gives the same bits."""
    graph = chosen_filters()
    forced = random_gates(graph, 3)[[0, 1, 0, 2, 0]]
    whole = check(place, graph, 5, torch.float16, forced)
    runner, image = make_runner(place, graph, torch.float16), make_images(graph, 5).to(place.device)
    limits = torch.full((graph.gates,), 0.5, device=place.device)
    alone = runner(image[2:3], limits, forced[2:3].to(place.device))
    assert all(torch.equal(one, part[2:3]) for one, part in zip(alone, whole, strict=True))
    shared = [pattern for pattern in runner.lists.patterns if pattern >= 0]
    assert shared
    offsets = runner.lists.make(forced.to(place.device)).offsets
    assert all(offsets[pattern].tolist() == [0, 3, 4, 5, 5, 5] for pattern in shared)


def test_padding(place):
    """The samples beyond ``count`` are neither read nor run: their MACs are 0."""
    graph = residual(recurrent=False)
    runner, image = make_runner(place, graph, torch.float16), make_images(graph, 4).to(place.device)
    limits = torch.full((graph.gates,), 0.5, device=place.device)
    out = runner(image, limits, None, torch.tensor([2], dtype=torch.int32, device=place.device))
    alone = runner(image[:2], limits)
    assert torch.equal(out.logits[:2], alone.logits) and torch.equal(out.gates[:2], alone.gates)
    assert out.macs[:2].tolist() == alone.macs.tolist() and out.macs[2:].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["two branches", "recurrent gates", "chosen filters"])
def test_compiles_and_takes_an_empty_batch(place, name):
    graph = NETWORKS[name]()
    runner, image = make_runner(place, graph), make_images(graph, 2).to(place.device)
    limits = torch.full((graph.gates,), 0.5, device=place.device)
    forced = random_gates(graph, 2).to(place.device) if needs_gates(graph) else None
    compiled = torch.compile(runner, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image, limits, forced), runner(image, limits, forced), equal_nan=True)
    empty = runner(image[:0], limits, None if forced is None else forced[:0])
    assert empty.logits.shape == (0, graph.logits) and empty.gates.shape == (0, graph.gates)


def test_keeps_nothing_of_the_original_weights(place):
    runner = make_runner(place, residual(recurrent=True))
    known = {id(part) for part in runner.buffers()}
    weights = [value for node in runner.graph.nodes for value in vars(node).values() if torch.is_tensor(value)]
    assert known and weights and all(weight.is_meta for weight in weights)


def test_every_node_is_served(place):
    from dsn_kernels.triton.steps import STEPS

    nodes = {kind for kind in vars(g).values() if isinstance(kind, type) and issubclass(kind, g.Node)}
    assert set(STEPS) == {kind for kind in nodes if hasattr(kind, "op")}
    made = [*NETWORKS.values(), *VOCABULARY.values(), nested]
    assert {type(node) for make in made for node in make().nodes} == set(STEPS), "each is in a tested network"


def test_a_constant_at_an_edge_is_refused(place):
    graph, weights = chosen_filters(), Weights()
    last, narrow = graph.map(4, 4), 3
    fields = {"before": weights.norm(30), "window": g.Window(3, 3, 1, 1, 1), "where": "units.2"}
    graph.add(g.Conv2d(src=narrow, dst=last, **fields, **weights.conv(4, 30, 3)))
    expected = "units.2: a BN-ReLU before 9 taps is not served where channels may hold no data; "
    with pytest.raises(UserError, match=expected + "expected a 1x1"):
        make_runner(place, graph)
