"""Parts of a network from one map to another: residual stages, chosen convolutions, gradual layers and the rest."""

import concurrent.futures
import copy

import pytest
import torch
from references import assert_as_exact_as_torch, assert_gates_agree, randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dsn_kernels
from dsn_kernels import ops
from dsn_kernels.nn import ResidualStage, SelectConv2d, Stage
from dsn_models.densenet import DenseBlock
from dsn_models.errors import UserError
from dsn_models.gradually_updated import GradualLayer
from dsn_models.inception import make_inception_a, make_inception_stem, make_reduction_a
from dsn_models.resnet import BasicUnit, BottleneckUnit, ResidualBottleneck
from dsn_models.shake_shake import ShakeUnit
from dsn_models.skipnet import FeedForwardGate, RecurrentGate

DENSITIES = (0.0, 0.5, 1.0)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def masks(batch, count, density, seed=7):
    return (torch.rand(batch, count, generator=torch.Generator().manual_seed(seed)) < density).byte()


def gradual(sizes, order="gradual", units=1, shortcut=False):
    return GradualLayer(sizes, 2, units, shortcut, order, recompute=False)


PARTS = {
    "basic": (lambda: BasicUnit(8, 8, 1), 8),
    "basic-entry": (lambda: BasicUnit(8, 16, 2), 8),
    "basic-pad": (lambda: BasicUnit(8, 16, 2, "pad"), 8),
    "bottleneck": (lambda: BottleneckUnit(16, 32, 2), 16),
    "preact": (lambda: ResidualBottleneck(16, 16, 1), 16),
    "preact-entry": (lambda: ResidualBottleneck(16, 32, 2), 16),
    "shake": (lambda: ShakeUnit(8, 8, 1), 8),
    "shake-entry": (lambda: ShakeUnit(8, 16, 2), 8),
    "gradual": (lambda: gradual((4, 4, 4)), 12),
    "gradual-one-channel": (lambda: gradual((1,) * 6), 6),
    "gradual-uneven": (lambda: gradual((1, 7, 4), shortcut=True), 12),
    "gradual-stacked": (lambda: gradual((6, 6), units=2), 12),
    "simultaneous": (lambda: gradual((4, 8), "simultaneous"), 12),
    "dense": (lambda: DenseBlock(8, 4, 3, bottleneck=True), 8),
    "dense-plain": (lambda: DenseBlock(8, 4, 3, bottleneck=False), 8),
    "branches": (make_inception_a, 384),
    "branches-halving": (make_reduction_a, 384),
    "branches-valid": (lambda: make_inception_stem(3)[4], 160),
}


def make_part(name):
    torch.manual_seed(1)
    make, channels = PARTS[name]
    return randomise(make()), channels


@pytest.mark.parametrize("name", PARTS)
def test_parts_equal_the_reference(name, threads):
    module, channels = make_part(name)
    twin, exact = dsn_kernels.accelerate(nn.Sequential(module))[0], copy.deepcopy(module).double()
    assert isinstance(twin, Stage)
    for size in [(8, 8), (9, 7)] if channels < 160 else [(9, 9)]:
        x = images(3, channels, *size)
        assert_as_exact_as_torch(twin(x), module(x), exact(x.double()))
        assert twin(x[:0]).shape == module(x)[:0].shape
    sliced = images(2, channels, 9, 18)[..., ::2]
    assert torch.equal(twin(sliced), twin(sliced.contiguous()))


GATES = {
    "recurrent": (lambda c: nn.Linear(c, 10), RecurrentGate),
    "ff-1": (lambda c: FeedForwardGate(c, True), lambda: None),
    "ff-2": (lambda c: FeedForwardGate(c, False), lambda: None),
}


def make_stage(unit, gate, first_gated):
    """Four units, the third an entry, and the gates of all but the first ``first_gated``."""
    torch.manual_seed(2)
    kinds = {"basic": BasicUnit, "bottleneck": BottleneckUnit, "preact": ResidualBottleneck}
    units = [kinds[unit](*shape) for shape in ((8, 8, 1), (8, 8, 1), (8, 16, 2), (16, 16, 1))]
    make_gate, make_control = GATES[gate]
    gates = [make_gate(channels) for channels in (8, 8, 8, 16)[first_gated:]]
    control = make_control()
    holder = nn.ModuleDict({"units": nn.ModuleList(units), "gates": nn.ModuleList(gates)})
    if control is not None:
        holder["control"] = control
    return randomise(holder)


def run_reference(stage, x, threshold=0.5, forced=None):
    """SkipNet's equation 1, unit by unit, everything computed."""
    first = len(stage["units"]) - len(stage["gates"])
    state, scores = None, []
    for i, unit in enumerate(stage["units"]):
        keep = torch.ones(len(x), dtype=torch.bool)
        if i >= first:
            gate = stage["gates"][i - first]
            if "control" in stage:
                score, state = stage["control"](gate(x.mean((2, 3))), state)
            else:
                score = gate(x)
            scores.append(score)
            keep = score > threshold if forced is None else forced[:, i - first] != 0
        shortcut = unit.shortcut(x)
        x = torch.where(keep[:, None, None, None], unit.merge(shortcut, unit.residual(x)), shortcut)
    return x, torch.stack(scores, 1)


@pytest.mark.parametrize("first_gated", [0, 1])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("unit", ["basic", "bottleneck", "preact"])
def test_residual_stage_equals_the_reference(unit, gate, first_gated):
    stage = make_stage(unit, gate, first_gated)
    twin = ResidualStage(stage["units"], stage["gates"], stage["control"] if "control" in stage else None)
    exact = copy.deepcopy(stage).double()
    for batch in (1, 3):
        x = images(batch, 8, 10, 10)
        for density in (None, *DENSITIES):
            forced = None if density is None else masks(batch, len(stage["gates"]), density)
            y, taken, scores = twin(x, forced=forced)
            true, true_scores = run_reference(exact, x.double(), forced=taken)
            assert_as_exact_as_torch(y, run_reference(stage, x, forced=taken)[0], true)
            if forced is None:
                assert_gates_agree(taken, scores, true_scores, 0.5)
            else:
                assert torch.equal(taken, forced)
                torch.testing.assert_close(scores.double(), true_scores, rtol=1e-4, atol=2e-5)


def test_a_bypassed_unit_costs_its_gate_alone():
    stage = make_stage("basic", "recurrent", 1)
    twin = ResidualStage(stage["units"], stage["gates"], stage["control"])
    shut = torch.cat([torch.zeros(1, 3), torch.eye(3)]).byte()
    macs = ops.residual_stage(images(4, 8, 10, 10), twin.weights, twin.plan, forced_gates=shut).macs
    assert (macs[1:] - macs[0]).tolist() == [2 * 9 * 64 * 100, 9 * (8 + 16) * 16 * 25, 2 * 9 * 256 * 25]
    assert torch.equal(macs, twin.plan.resized(10, 10).macs(shut))


CONVOLUTIONS = {
    "3x3": ({"kernel_size": 3, "padding": 1}, {}),
    "3x3-stride": ({"kernel_size": 3, "padding": 1, "stride": 2}, {"relu": True}),
    "1x1": ({"kernel_size": 1}, {"relu": True}),
    "1x1-preact": ({"kernel_size": 1}, {"before": True}),
    "1x7": ({"kernel_size": (1, 7), "padding": (0, 3)}, {"relu": True}),
    "7x1": ({"kernel_size": (7, 1), "padding": (3, 0)}, {}),
    "valid": ({"kernel_size": 3}, {"relu": True}),
    "valid-stride": ({"kernel_size": 3, "stride": 2}, {}),
    "5x5-bias": ({"kernel_size": 5, "bias": True}, {"norm": False}),
    "7x7-stride-3": ({"kernel_size": 7, "stride": 3, "padding": 3}, {}),
}


def make_selected(name, channels=10, filters=20):
    torch.manual_seed(4)
    shape, around = CONVOLUTIONS[name]
    conv = nn.Conv2d(channels, filters, **{"bias": False, **shape})
    norm = nn.BatchNorm2d(filters) if around.get("norm", True) else None
    before = nn.BatchNorm2d(channels) if around.get("before") else None
    parts = nn.ModuleDict({k: m for k, m in (("conv", conv), ("norm", norm), ("before", before)) if m is not None})
    randomise(parts)
    relu = around.get("relu", False)
    return parts, relu, SelectConv2d(conv, norm, relu, before)


def run_selected(parts, relu, x, filters, channels):
    x = x * channels[:, :, None, None].to(x)
    if "before" in parts:
        x = parts["before"](x).relu()
    y = parts["conv"](x)
    y = parts["norm"](y) if "norm" in parts else y
    return (y.relu() if relu else y) * filters[:, :, None, None].to(x)


def choices(batch, count):
    """All off, one on, all on, and random."""
    one = torch.zeros(batch, count, dtype=torch.uint8)
    one[:, count // 2] = 1
    return [masks(batch, count, 0.0), one, masks(batch, count, 1.0), masks(batch, count, 0.5)]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_select_conv2d_equals_the_reference(name, threads):
    parts, relu, twin = make_selected(name)
    exact = copy.deepcopy(parts).double()
    x = images(3, 10, 11, 9)
    area = run_selected(parts, relu, x, *(masks(3, n, 1.0) for n in (20, 10)))[0, 0].numel()
    taps = parts["conv"].weight[0, 0].numel()
    for filters in choices(3, 20):
        for channels in choices(3, 10):
            y, macs = ops.select_conv2d(x, twin.weights, twin.plan, filters, channels)
            plain = run_selected(parts, relu, x, filters, channels)
            assert_as_exact_as_torch(y, plain, run_selected(exact, relu, x.double(), filters, channels))
            assert torch.equal(y == 0, plain == 0) or relu
            assert torch.equal(macs, area * taps * filters.sum(1) * channels.sum(1))
    assert torch.equal(twin(x), ops.select_conv2d(x, twin.weights, twin.plan, *(masks(3, n, 1.0) for n in (20, 10)))[0])


def arguments(kind):
    """(image, weights, thresholds, forced_gates, count, plan, gates, logits, map, element) of a small stage."""
    if kind == "residual_stage":
        stage = make_stage("basic", "recurrent", 1)
        twin, x = ResidualStage(stage["units"], stage["gates"], stage["control"]), images(2, 8, 8, 8)
        forced = None
    elif kind == "select_conv2d":
        twin, x = make_selected("3x3")[2], images(2, 10, 8, 8)
        forced = masks(2, 30, 0.5)
    else:
        twin, x, forced = Stage(make_part("gradual")[0]), images(2, 12, 8, 8), None
    plan = twin.plan.resized(8, 8)
    store = plan.code[-1]
    stored = [store.in_channels, *plan.buffers[store.src][1:]]
    return [x, twin.weights, torch.full((plan.gates,), 0.5), forced, None, plan.words(), plan.gates, 0, stored, 0]


KINDS = ("residual_stage", "select_conv2d", "gradual_layer")


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck_and_flop_count(kind):
    given = tuple(arguments(kind))
    torch.library.opcheck(torch.ops.dsn.run_plan.default, given)
    with FlopCounterMode(display=False) as counter:
        out = torch.ops.dsn.run_plan(*given)
    assert counter.get_total_flops() == 2 * int(out[4].sum()) > 0


def make_twin(kind):
    """A small twin, and the inputs of a batch for it."""
    if kind == "residual_stage":
        stage = make_stage("basic", "recurrent", 1)
        return ResidualStage(stage["units"], stage["gates"], stage["control"]), lambda n: (images(n, 8, 8, 8),)
    if kind == "select_conv2d":
        return make_selected("3x3")[2], lambda n: (images(n, 10, 8, 8), masks(n, 20, 0.5), masks(n, 10, 0.5))
    return Stage(make_part("gradual")[0]), lambda n: (images(n, 12, 8, 8),)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_and_exports(kind):
    twin, inputs = make_twin(kind)
    given = inputs(2)
    expected = twin(*given)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.export.export(twin, given).module()(*given), expected, rtol=0, atol=0)
    copied = copy.deepcopy(twin)
    copied.load_state_dict(twin.state_dict())
    torch.testing.assert_close(copied(*given), expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_threads_and_callers_do_not_matter(kind):
    """Batch sizes around the worker count, thread counts, and four callers at once: each sample as if alone."""
    twin, inputs = make_twin(kind)

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    before, results = torch.get_num_threads(), {}
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for batch in (1, 2, 3, 4, 5):
                y = first(twin(*inputs(batch)))
                assert torch.equal(y, results.setdefault(batch, y))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                for batch, y in zip(
                    (1, 2, 3, 4), pool.map(lambda n: first(twin(*inputs(n))), (1, 2, 3, 4)), strict=True
                ):
                    assert torch.equal(y, results[batch])
    finally:
        torch.set_num_threads(before)


def test_a_gate_at_the_threshold_stays_shut():
    stage = make_stage("basic", "ff-2", 1)
    for gate in stage["gates"]:
        nn.init.zeros_(gate.linear.weight)
        nn.init.zeros_(gate.linear.bias)
    twin = ResidualStage(stage["units"], stage["gates"])
    _, taken, scores = twin(images(2, 8, 8, 8))
    assert (scores == 0.5).all() and not taken.any()
    assert twin(images(2, 8, 8, 8), threshold=0.499)[1].all()


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 8, 9), "run_plan: image must have shape"),
        (0, torch.zeros(2, 9, 8, 8), "run_plan: the plan is for images of 8 x 8 x 8, got 9 x 8 x 8"),
        (1, torch.zeros(10), "run_plan: weights hold 10 floats"),
        (2, torch.full((3,), 2.0), r"run_plan: thresholds must lie in \[0, 1\], got 2"),
        (2, torch.zeros(4), "run_plan: thresholds must have shape"),
        (3, torch.full((2, 3), 2).byte(), r"run_plan: forced_gates must hold 0 \(skip\) or 1 \(run\), got 2"),
        (3, torch.zeros(1, 3).byte(), "run_plan: forced_gates must have shape"),
        (4, torch.zeros(1, dtype=torch.int32), "run_plan: count is for a GPU"),
        (8, [16, 8, 8], "run_plan: the plan stores a map of 16 x 4 x 4, not of 16 x 8 x 8"),
        (9, 1, "run_plan: element must be 0"),
    ],
)
def test_bad_arguments(position, value, message):
    given = arguments("residual_stage")
    given[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dsn.run_plan(*given)


def test_masks_that_a_selection_needs_are_asked_for():
    given = arguments("select_conv2d")
    given[3] = None
    with pytest.raises(RuntimeError, match="run_plan: forced_gates must say which filters run, got none"):
        torch.ops.dsn.run_plan(*given)


def test_a_network_that_stores_a_map_is_refused():
    given = arguments("gradual_layer")
    with pytest.raises(RuntimeError, match="network: the plan stores a map of 12 x 8 x 8, not of 0 x 1 x 1"):
        torch.ops.dsn.network(*given[:4], *given[5:8])


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
        SelectConv2d(conv)


def test_a_3x3_behind_bn_relu_and_a_mask_is_refused():
    with pytest.raises(UserError, match="expected a 1x1"):
        SelectConv2d(nn.Conv2d(4, 4, 3, padding=1), before=nn.BatchNorm2d(4))


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
