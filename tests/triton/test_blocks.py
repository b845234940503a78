"""Each kernel of dense networks on its own, of maps of any size, against plain torch in float64."""

import pytest
import torch
from device_checks import check_chosen_conv2d, check_residual_units, check_without_gates
from graph_reference import check_graph
from small_graphs import dense_block, head, random_gates, transition
from stage_parts import GATES, PARTS, make_part, make_stage, masks

DTYPES = [torch.float32, torch.float16]
# Small: each step of a product takes the interpreter milliseconds.
BLOCKS = {
    "bottleneck": {"channels": 24, "layers": 3},
    "plain": {"channels": 24, "layers": 3, "bottleneck": False},
    "add": {"channels": 16, "layers": 3, "merge": "add"},
    "soft": {"channels": 24, "layers": 3, "gate": "soft"},
    "growth-6": {"channels": 12, "layers": 3, "growth": 6, "bottleneck": False},
    "growth-32": {"channels": 64, "layers": 2, "growth": 32},
    "growth-20-plain": {"channels": 10, "layers": 2, "growth": 20, "bottleneck": False},
    "one-layer": {"channels": 5, "layers": 1, "growth": 7},
}


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def make_runner(place, graph, dtype, size):
    """Made for maps of another size than it runs on."""
    from dsn_kernels.triton.runner import TritonRunner

    return TritonRunner(graph.resized(2, 2), dtype).to(place.device).at(*size)


def check(place, dtype, graph, x, forced=None):
    runner = make_runner(place, graph, dtype, x.shape[2:])
    return check_graph(runner, graph, x, dtype, forced, place.device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", BLOCKS)
def test_dense_block(place, case, dtype):
    check(place, dtype, dense_block((6, 6), **BLOCKS[case]), images(2, BLOCKS[case]["channels"], 6, 6))


@pytest.mark.parametrize("case", ["bottleneck", "plain", "add"])
@pytest.mark.parametrize("density", [0, 0.5, 1], ids=["shut", "random", "open"])
def test_forced_gates(place, case, density):
    graph = dense_block((6, 6), **BLOCKS[case])
    forced = random_gates(graph, 2, density)
    check(place, torch.float16, graph, images(2, BLOCKS[case]["channels"], 6, 6), forced)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 33)])
@pytest.mark.parametrize("kind", ["bottleneck", "plain", "add"])
def test_odd_sizes(place, size, kind):
    options = {"bottleneck": {}, "plain": {"bottleneck": False}, "add": {"merge": "add"}}[kind]
    graph = dense_block(size, channels=8, layers=2, growth=6, **options)
    forced = torch.tensor([[1, 1], [0, 1]], dtype=torch.uint8)
    check(place, torch.float32, graph, images(2, 8, *size), forced)


def test_more_samples_than_a_word_holds(place):
    graph = dense_block((2, 2), channels=4, layers=2, growth=4, merge="add")
    check(place, torch.float16, graph, images(131, 4, 2, 2), random_gates(graph, 131))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (2, 3)])
def test_transition(place, dtype, size):
    check(place, dtype, transition(24, 70, size), images(2, 24, *size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (3, 5)])
def test_head(place, dtype, size):
    assert check(place, dtype, head(21, 70, size), images(2, 21, *size)).logits.dtype == torch.float32


def test_inputs_of_the_kernels_type(place):
    runner = make_runner(place, dense_block((6, 6), **BLOCKS["one-layer"]), torch.float16, (6, 6))
    x, limits = images(2, 5, 6, 6).half().to(place.device), torch.full((1,), 0.5, device=place.device)
    y = runner(x, limits).map
    assert y.dtype == torch.float16
    assert torch.equal(y, runner(x.float(), limits).map.half())


def test_nan_stays_nan(place):
    x = images(1, 8, 4, 4).to(place.device)
    x[0, 0, 0, 0] = float("nan")
    runner = make_runner(place, dense_block((4, 4), channels=8, layers=1), torch.float16, (4, 4))
    limits = torch.full((1,), 0.5, device=place.device)
    out = runner(x, limits)
    assert out.gates.item() == 0 and out.scores.isnan().all(), "a NaN score exceeds no threshold"
    forced = torch.ones(1, 1, dtype=torch.uint8, device=place.device)
    assert runner(x, limits, forced).map[0, 8:].isnan().any()


@pytest.mark.parametrize("size", [(5, 7)])
@pytest.mark.parametrize("name", [name for name, (_, channels) in PARTS.items() if channels < 160])
def test_parts(place, name, size):
    module, channels = make_part(name)
    check_without_gates(place, module, images(2, channels, *size), torch.float32)


@pytest.mark.parametrize("gate", GATES)
def test_residual_units(place, gate):
    stage = make_stage("basic", gate, 1)
    for forced in (None, masks(2, 3, 0.5)):
        check_residual_units(place, stage, images(2, 8, 7, 6), torch.float32, forced)


@pytest.mark.parametrize("name", ["3x3-stride", "1x1-preact", "valid"])
def test_chosen_conv2d(place, name):
    check_chosen_conv2d(place, name, torch.float16)
