"""Parts of a network from one map to another: residual units, chosen convolutions, gradual layers and the rest."""

import concurrent.futures
import copy

import pytest
import torch
from stage_parts import (
    CONVOLUTIONS,
    GATES,
    PARTS,
    images,
    make_part,
    make_selected,
    make_stage,
    masks,
    residual_units,
    run_reference,
    run_selected,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dsn_kernels
from dsn_kernels import Part
from dsn_kernels.capture import ChosenConv2d
from dsn_kernels.graph import count_macs
from dsn_models.errors import UserError
from tests.checks import assert_as_exact_as_torch, assert_gates_agree

DENSITIES = (0.0, 0.5, 1.0)


@pytest.mark.parametrize("name", PARTS)
def test_parts_equal_the_reference(name, threads):
    module, channels = make_part(name)
    fast, exact = dsn_kernels.accelerate(nn.Sequential(module))[0], copy.deepcopy(module).double()
    assert isinstance(fast, Part)
    for size in [(8, 8), (9, 7)] if channels < 160 else [(9, 9)]:
        x = images(3, channels, *size)
        assert_as_exact_as_torch(fast(x), module(x), exact(x.double()))
        assert fast(x[:0]).shape == module(x)[:0].shape
    sliced = images(2, channels, 9, 18)[..., ::2]
    assert torch.equal(fast(sliced), fast(sliced.contiguous()))


@pytest.mark.parametrize("first_gated", [0, 1])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("unit", ["basic", "bottleneck", "preact"])
def test_residual_units_equal_the_reference(unit, gate, first_gated):
    stage = make_stage(unit, gate, first_gated)
    fast = Part(residual_units(stage))
    exact = copy.deepcopy(stage).double()
    for batch in (1, 3):
        x = images(batch, 8, 10, 10)
        for density in (None, *DENSITIES):
            forced = None if density is None else masks(batch, len(stage["gates"]), density)
            y, taken, scores = fast(x, forced=forced)
            true, true_scores = run_reference(exact, x.double(), forced=taken)
            assert_as_exact_as_torch(y, run_reference(stage, x, forced=taken)[0], true)
            if forced is None:
                assert_gates_agree(taken, scores, true_scores, 0.5)
            else:
                assert torch.equal(taken, forced)
                torch.testing.assert_close(scores.double(), true_scores, rtol=1e-4, atol=2e-5)


def test_a_bypassed_unit_costs_its_gate_alone():
    stage = make_stage("basic", "recurrent", 1)
    fast = Part(residual_units(stage))
    shut = torch.cat([torch.zeros(1, 3), torch.eye(3)]).byte()
    fast(images(4, 8, 10, 10), forced=shut)
    macs = fast.last_macs
    assert (macs[1:] - macs[0]).tolist() == [2 * 9 * 64 * 100, 9 * (8 + 16) * 16 * 25, 2 * 9 * 256 * 25]
    assert torch.equal(macs, count_macs(fast.runner.graph.resized(10, 10), shut))


def choices(batch, count):
    """All off, one on, all on, and random."""
    one = torch.zeros(batch, count, dtype=torch.uint8)
    one[:, count // 2] = 1
    return [masks(batch, count, 0.0), one, masks(batch, count, 1.0), masks(batch, count, 0.5)]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_chosen_conv2d_equals_the_reference(name, threads):
    parts, relu, chosen = make_selected(name)
    fast = Part(chosen)
    exact = copy.deepcopy(parts).double()
    x = images(3, 10, 11, 9)
    area = run_selected(parts, relu, x, *(masks(3, n, 1.0) for n in (20, 10)))[0, 0].numel()
    taps = parts["conv"].weight[0, 0].numel()
    for filters in choices(3, 20):
        for channels in choices(3, 10):
            y, macs = fast(x, forced=torch.cat([filters, channels], 1)), fast.last_macs
            plain = run_selected(parts, relu, x, filters, channels)
            assert_as_exact_as_torch(y, plain, run_selected(exact, relu, x.double(), filters, channels))
            assert torch.equal(y == 0, plain == 0) or relu
            assert torch.equal(macs, area * taps * filters.sum(1) * channels.sum(1))


def make_fast(kind):
    """A small part, and the inputs of a batch for it."""
    if kind == "residual units":
        stage = make_stage("basic", "recurrent", 1)
        fast = Part(residual_units(stage))
        return fast, lambda n: (images(n, 8, 8, 8),)
    if kind == "chosen conv2d":
        return Part(make_selected("3x3")[2]), lambda n: (images(n, 10, 8, 8), 0.5, masks(n, 30, 0.5))
    return Part(make_part("gradual")[0]), lambda n: (images(n, 12, 8, 8),)


def arguments(kind):
    """Of the operator, for a small stage: image, weights, thresholds, forced_gates, count, plan, gates, logits, map,
    element, timed."""
    fast, inputs = make_fast(kind)
    x, _, forced = (*inputs(2), 0.5, None)[:3]
    sized = fast.runner.sized(8, 8)
    limits = torch.full((sized.graph.gates,), 0.5)
    return [x, fast.runner.weights, limits, forced, None, sized.words, *sized.sizes.values(), 0, False]


KINDS = ("residual units", "chosen conv2d", "gradual layer")


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_and_flop_count(kind):
    given = tuple(arguments(kind))
    torch.library.opcheck(torch.ops.dsn.run_plan.default, given)
    with FlopCounterMode(display=False) as counter:
        out = torch.ops.dsn.run_plan(*given)
    assert counter.get_total_flops() == 2 * int(out[4].sum()) > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_and_exports(kind):
    fast, inputs = make_fast(kind)
    given = inputs(2)
    expected = fast(*given)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.export.export(fast, given).module()(*given), expected, rtol=0, atol=0)
    copied = copy.deepcopy(fast)
    copied.load_state_dict(fast.state_dict())
    torch.testing.assert_close(copied(*given), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_threads_and_callers_do_not_matter(kind):
    """Batch sizes around the worker count, thread counts, and four callers at once: each sample as if alone."""
    fast, inputs = make_fast(kind)

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    before, results = torch.get_num_threads(), {}
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for batch in (1, 2, 3, 4, 5):
                y = first(fast(*inputs(batch)))
                assert torch.equal(y, results.setdefault(batch, y))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                for batch, y in zip(
                    (1, 2, 3, 4), pool.map(lambda n: first(fast(*inputs(n))), (1, 2, 3, 4)), strict=True
                ):
                    assert torch.equal(y, results[batch])
    finally:
        torch.set_num_threads(before)


def test_a_gate_at_the_threshold_stays_shut():
    stage = make_stage("basic", "ff-2", 1)
    for gate in stage["gates"]:
        nn.init.zeros_(gate.linear.weight)
        nn.init.zeros_(gate.linear.bias)
    fast = Part(residual_units(stage))
    _, taken, scores = fast(images(2, 8, 8, 8))
    assert (scores == 0.5).all() and not taken.any()
    assert fast(images(2, 8, 8, 8), threshold=0.499)[1].all()


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 8, 9), "run_plan: image must have shape"),
        (0, torch.zeros(2, 9, 8, 8), "run_plan: the plan is for images of 8 x 8 x 8, got 9 x 8 x 8"),
        (1, torch.zeros(10), "run_plan: weights hold 10 floats"),
        (2, torch.full((3,), 2.0), r"run_plan: thresholds must lie in \[0, 1\], got 2"),
        (2, torch.zeros(4), "run_plan: thresholds must have shape"),
        (3, torch.full((2, 3), 3).byte(), r"run_plan: forced_gates must hold 0 \(skip\) or 1 \(run\), got 3"),
        (3, torch.zeros(1, 3).byte(), "run_plan: forced_gates must have shape"),
        (4, torch.zeros(1, dtype=torch.int32), "run_plan: count is for a GPU"),
        (8, [16, 8, 8], "run_plan: the plan stores a map of 16 x 4 x 4, not of 16 x 8 x 8"),
        (9, 1, "run_plan: element must be 0"),
    ],
)
def test_bad_arguments(position, value, message):
    given = arguments("residual units")
    given[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dsn.run_plan(*given)


def test_masks_that_a_selection_needs_are_asked_for():
    given = arguments("chosen conv2d")
    given[3] = None
    with pytest.raises(RuntimeError, match="run_plan: forced_gates must say which filters run, got none"):
        torch.ops.dsn.run_plan(*given)


def test_a_map_that_is_stored_unasked_is_refused():
    given = arguments("gradual layer")
    given[8] = [0, 1, 1]
    with pytest.raises(RuntimeError, match="run_plan: the plan stores a map of 12 x 8 x 8, not of 0 x 1 x 1"):
        torch.ops.dsn.run_plan(*given)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "is not served; expected one group"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "is not served; .* padding in numbers and of zeros"),
        (nn.Conv2d(4, 4, 3, dilation=2), "is not served; expected one group, no dilation"),
        (nn.Conv2d(4, 4, 3, stride=(1, 2)), "is not served; expected one group, no dilation, equal strides"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padding in numbers"),
    ],
)
def test_convolutions_that_are_not_served_are_refused(conv, message):
    with pytest.raises(UserError, match=message):
        Part(ChosenConv2d(conv))


def test_a_3x3_behind_bn_relu_and_a_mask_is_refused():
    with pytest.raises(UserError, match="expected a 1x1"):
        Part(ChosenConv2d(nn.Conv2d(4, 4, 3, padding=1), before=nn.BatchNorm2d(4)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_corrupted_plan_leaves_its_memory(kind):
    """Every word of the plan, changed: refused, or run inside its buffers."""
    given = arguments(kind)
    words, refused = given[5], 0
    for i in range(0, len(words), 1 if len(words) < 400 else 3):
        for value in (-1, 0, 1, 7, 10**6, 2**62):
            given[5] = words.clone()
            given[5][i] = value
            try:
                torch.ops.dsn.run_plan(*given)
            except RuntimeError as error:
                assert str(error).startswith("run_plan: ")
                refused += 1
    assert refused > len(words) // 3
