import pytest
import torch
from references import make_head

import dsn_kernels
from dsn_kernels import _C
from dsn_kernels import graph as g
from dsn_kernels.capture.builder import GraphBuilder
from dsn_kernels.lower import cpu
from dsn_kernels.runtime import PlanRunner
from tests.networks import make_images, make_small


@pytest.fixture(scope="module")
def fast():
    return dsn_kernels.accelerate(make_small("concat-bc-100"))


def arguments(fast, batch=2, forced=None):
    runner, images = fast.runner, make_images(fast, batch)
    return [images, runner.weights, fast.thresholds, forced, runner.own.words, *runner.own.sizes.values()]


def test_opcheck(fast):
    forced = torch.randint(0, 2, (2, fast.graph.gates), dtype=torch.uint8)
    for gates in (None, forced):
        *first, plan, count, logits, stored = arguments(fast, 2, gates)
        given = (*first, None, plan, count, logits, stored, 0, False)
        torch.library.opcheck(torch.ops.dsn.run_plan.default, given)


def plan_with_costs(*costs):
    """The words of a plan of one buffer and one instruction."""
    return torch.tensor([_C.PLAN_FORMAT, 1, 0, *costs, 1, 1, 1, *(default for _, default in _C.INSTRUCTION_FIELDS)])


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 3, 9, 8), "run_plan: the plan is for images of 3 x 8 x 8, got 3 x 9 x 8"),
        (1, torch.zeros(10), "run_plan: weights hold 10 floats, the plan needs"),
        (4, torch.tensor([_C.PLAN_FORMAT, 2, 0]), "run_plan: plan of 3 words does not hold whole buffers"),
        (4, torch.tensor([99]), f"run_plan: the plan is of format 99, expected {_C.PLAN_FORMAT}; make the model anew"),
        (4, plan_with_costs(0, -1, 5), "run_plan: plan has costs of 0, -1 and 5 as/byte, expected none"),
        (5, 3, "run_plan: the plan has 12 gates and 120 logits, got gates=3"),
        (7, [8, 4, 4], "run_plan: the plan stores a map of 0 x 1 x 1, not of 8 x 4 x 4"),
        (7, [8, 4], "run_plan: map must have channels, height and width"),
    ],
)
def test_bad_arguments(fast, position, value, message):
    given = arguments(fast)
    given[position] = value
    with pytest.raises(RuntimeError, match=message):
        dsn_kernels.ops.run_plan(*given)


def with_regions(fast, regions):
    """The words of a network's plan, with these regions in place of its own."""
    words, maps = fast.runner.own.words, len(fast.graph.maps)
    begin = 6 + 3 * maps
    own = torch.tensor(regions).flatten()
    behind = words[begin + 3 * len(fast.graph.regions) :]
    return torch.cat([words[:2], torch.tensor([len(regions)]), words[3:begin], own, behind])


@pytest.mark.parametrize(
    "regions",
    [[(len(_C.REGIONS), 0, 1)], [(-1, 0, 1)], [(0, -1, 1)], [(0, 1, 1)], [(0, 0, 10**6)], [(0, 0, 2), (1, 1, 3)]],
    ids=str,
)
def test_regions_are_known_in_order_and_within_the_code(fast, regions):
    given = arguments(fast)
    given[4] = with_regions(fast, regions)
    with pytest.raises(RuntimeError, match=r"^run_plan: region \d of the plan is of unknown kind"):
        dsn_kernels.ops.run_plan(*given)
    given[4] = with_regions(fast, [(0, 0, 2), (1, 2, 3)])
    dsn_kernels.ops.run_plan(*given)


def test_no_corrupted_plan_leaves_its_memory(fast):
    """Every word of the plan, changed: refused, or run inside its buffers."""
    given = arguments(fast)
    words = fast.runner.own.words
    refused = 0
    for i in range(len(words)):
        for value in (-1, 0, 1, 7, 10**6, 2**62):
            changed = words.clone()
            changed[i] = value
            given[4] = changed
            try:
                dsn_kernels.ops.run_plan(*given)
            except RuntimeError as error:
                assert str(error).startswith("run_plan: ")
                refused += 1
    assert refused > len(words)


def test_plan_of_load_and_head():
    """Plans need not be dual networks."""
    module, builder = make_head(3, 2), GraphBuilder()
    builder.head(builder.load(3, 4), module)
    runner, x = PlanRunner(cpu.lower(builder)), torch.randn(5, 3, 4, 4)
    given = (x, runner.weights, torch.empty(0), None, runner.own.words, 0, 2)
    logits, stored, gates, scores, macs, spans = dsn_kernels.ops.run_plan(*given)
    torch.testing.assert_close(logits, module(x))
    assert gates.shape == scores.shape == (5, 0) and macs.tolist() == [6] * 5
    assert stored.shape == (5, 0, 1, 1) and spans.shape == (0,)


def test_what_waits_for_a_gate_does_not_run_beside_what_decides_it():
    """Two tensors enter. The gate is decided by the first, after a long way, and opens what reads the second alone."""
    torch.manual_seed(0)
    graph, side = g.Graph(), 32
    first, other, second, last = (graph.map(16, side) for _ in range(4))
    window, weight = g.Window(3, 3, 1, 1, 1), torch.randn(16, 16, 3, 3, dtype=torch.float64) / 12
    conv = {"in_channels": 16, "window": window, "weight": weight, "bias": weight[:, 0, 0, 0]}
    graph.add(g.Load(dst=first, in_channels=16))
    graph.add(g.Load(dst=second, in_channels=16, src_offset=16 * side * side))
    for _ in range(20):
        graph.add(g.Conv2d(src=first, dst=other, activation="relu", **conv))
        graph.add(g.Conv2d(src=other, dst=first, activation="relu", **conv))
    graph.add(g.PoolSums(src=first, in_channels=16))
    zero = torch.zeros(1, 16, dtype=torch.float64)
    graph.add(g.Gate(src=first, in_channels=16, weight=zero, bias=zero[:, 0] + 1, first_gate=0))
    graph.add(g.Pointwise(src=second, dst=last, in_channels=16))
    graph.add(g.Conv2d(src=second, dst=last, only_if=0, **conv))
    graph.add(g.Store(src=last, in_channels=16))
    runner, x = PlanRunner(cpu.lower(graph)), torch.randn(1, 32 * side * side, 1, 1)
    expected = torch.nn.functional.conv2d(x[:, 16 * side * side :].view(1, 16, side, side), weight.float(), padding=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(20):
            out = runner(x, torch.tensor([0.5]))
            torch.testing.assert_close(out.map, expected + conv["bias"].float().view(-1, 1, 1), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(threads)
