"""Networks without gated dense blocks on the CUDA kernels against the reference models in float64."""

import copy

import pytest
import torch
from device_checks import accelerate, check_network, check_samples_alone, same_dtype
from references import assert_as_exact_as_torch
from small_models import make_images, random_gates
from small_planned import PLANNED, make_planned, residual_units

import dsn_kernels
from dsn_kernels import _C
from dsn_kernels.nn.packing import Packer, pack_conv2d, pack_gate
from dsn_kernels.nn.plan_builder import PlanBuilder
from dsn_kernels.nn.plan_runner import make_runner
from dsn_kernels.ops.network import Plan

BFLOAT16 = ("resnet-preact", "skipnet-rnn", "gaternet-all", "gunn")  # the same code as float16's but for a type
CASES = [(n, t) for n in PLANNED for t in (torch.float32, torch.float16)] + [(n, torch.bfloat16) for n in BFLOAT16]
MASKED = [
    name
    for name in PLANNED
    if name.startswith("gaternet") and name not in ("gaternet-densenet-last", "gaternet-inception-last")
]
GATED = [name for name in PLANNED if name.startswith("skipnet")]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_equals_the_reference(place, name, dtype):
    place.seeded(2)
    model = make_planned(name)
    fast, x = accelerate(place, model, dtype), make_images(model, 2)
    check_network(place, model, fast, x, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("channels", "filters", "side", "taps", "stride"),
    [
        (8, 300, (3, 3), 1, 1),  # more columns than a block takes
        (300, 8, (4, 5), 9, 2),  # many passes over the input
        (20, 36, (20, 33), 9, 1),  # several tiles
        (3, 5, (1, 70), 9, 2),
        (7, 1, (2, 1), 1, 2),
    ],
)
def test_convolution(place, channels, filters, side, taps, stride, dtype):
    place.seeded(4)
    packer, plan = Packer(), Plan()
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(channels, filters, 3 if taps == 9 else 1, stride, taps // 9).requires_grad_(False)
    x, y = plan.buffer(channels, *side), plan.buffer(filters, *(-(-n // stride) for n in side))
    plan.add("load", dst=x, in_channels=channels)
    plan.add("conv2d", src=x, dst=y, **pack_conv2d(packer, conv, None))
    plan.add("store", src=y, in_channels=filters)
    runner = make_runner(plan, packer.tensor(), dtype, place.backend).to(place.device)
    images = torch.randn(2, channels, *side)
    actual = runner(images.to(place.device), torch.empty(0, device=place.device)).map.cpu()
    assert_as_exact_as_torch(actual, same_dtype(conv, images, dtype), same_dtype(conv, images, torch.float64))


def windows():
    """(kernel, stride, padding) beyond those that residual networks have."""
    return [((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0)), (3, 1, 0), (3, 2, 0), (5, 1, 2), (7, 3, 3), (2, 2, 0), (1, 3, 0)]


def run_map(place, plan, packer, image, dtype, forced=None):
    runner = make_runner(plan, packer.tensor(), dtype, place.backend).to(place.device)
    limits = torch.full((plan.gates,), 0.5, device=place.device)
    out = runner(image.to(place.device), limits, None if forced is None else forced.to(place.device))
    return out.map.cpu(), out.macs.cpu()


@pytest.mark.parametrize(("masked", "dtype"), [(False, torch.float32), (True, torch.float16)], ids=["all", "chosen"])
@pytest.mark.parametrize("window", windows(), ids=str)
def test_any_window(place, window, masked, dtype):
    """Behind a 1x1 whose filters are chosen: the inputs that hold data are read, wherever they are."""
    place.seeded(6)
    torch.manual_seed(0)
    kernel, stride, padding = window
    first = torch.nn.Conv2d(5, 18, 1).requires_grad_(False)
    conv = torch.nn.Conv2d(18, 10, kernel, stride, padding).requires_grad_(False)
    image = torch.randn(3, 5, 11, 9)
    filters, outputs = (torch.rand(3, n) < 0.5 for n in (18, 10))
    outputs[0], filters[1] = True, False  # all filters; no inputs
    if not masked:
        filters[:], outputs[:] = True, True
    builder = PlanBuilder({"first": 0, "conv": 18} if masked else {})
    x = builder.load(5, 11)
    builder.plan.buffers[x] = (5, 11, 9)
    middle = builder.conv(first, None, x, builder.buffer(18, 11, 9), "relu", path="first")
    builder.pool("max_pool", middle, builder.buffer(18, 11, 9), 1, 1)  # its filters stay in their places
    y = builder.buffer(10, *conv(first(image)).shape[2:])
    builder.conv(conv, None, middle, y, path="conv")
    builder.plan.add("store", src=y, in_channels=10)
    plan, _ = builder.result()

    def reference(kind):
        a, b = (copy.deepcopy(c).to(kind) for c in (first, conv))
        inner = a(image.to(kind)).relu() * filters[:, :, None, None]
        return b(inner) * outputs[:, :, None, None]

    forced = torch.cat([filters, outputs], 1).byte() if masked else None
    actual, macs = run_map(place, plan, builder.packer, image, dtype, forced)
    assert_as_exact_as_torch(actual, reference(dtype), reference(torch.float64))
    pixels = actual[0, 0].numel()
    expected = 99 * 5 * filters.sum(1) + pixels * conv.weight[0, 0].numel() * filters.sum(1) * outputs.sum(1)
    assert torch.equal(macs, expected)


@pytest.mark.parametrize(
    ("window", "offset"), [((2, 2, 0), 8), ((3, 2, 0), 3), ((3, 1, 1), 8), ((5, 3, 2), 3)], ids=str
)
@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
def test_pools(place, op, window, offset):
    """Of any window, behind other channels of their buffer."""
    place.seeded(7)
    image = torch.randn(2, 6, 9, 7)
    builder = PlanBuilder()
    x = builder.load(6, 9)
    builder.plan.buffers[x] = (6, 9, 7)
    make = {
        "max_pool": torch.nn.MaxPool2d(*window),
        "avg_pool": torch.nn.AvgPool2d(*window, count_include_pad=False),
    }[op]
    pooled = make(image)
    front = torch.nn.Conv2d(6, offset, window[0], window[1], window[2]).requires_grad_(False)
    y = builder.buffer(offset + 6, *pooled.shape[2:])
    builder.conv(front, None, x, y)
    builder.pool(op, x, y, *window, offset=offset)
    builder.plan.add("store", src=y, in_channels=offset + 6)
    actual, _ = run_map(place, builder.plan, builder.packer, image, torch.float32)
    expected = torch.cat([front(image), pooled], 1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("count", [5, 66])  # decided by the launch that pools, and by launches of their own
def test_gates_of_one_map(place, kind, count):
    place.seeded(5)
    packer, plan = Packer(), Plan()
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(count, 6, generator=generator), torch.randn(count, generator=generator)
    x = plan.buffer(6, 4, 5)
    plan.add("load", dst=x, in_channels=6)
    plan.add("pool_sums", src=x, in_channels=6)
    for i in range(count):
        packed = pack_gate(packer, weight[i : i + 1], bias[i : i + 1])
        plan.add("gate", src=x, in_channels=6, gate=_C.GATES[kind], first_gate=i, weights=packed)
    runner = make_runner(plan, packer.tensor(), torch.float32, place.backend).to(place.device)
    images, limits = torch.randn(3, 6, 4, 5, generator=generator), torch.rand(count, generator=generator)
    out = runner(images.to(place.device), limits.to(place.device))
    z = images.double().mean((2, 3)) @ weight.double().T + bias
    scores = (z + 0.5).clamp(0, 1) if kind == "hard" else z.sigmoid()
    torch.testing.assert_close(out.scores.cpu().double(), scores, rtol=1e-5, atol=1e-5)
    assert torch.equal(out.gates.cpu().bool(), scores > limits)
    assert out.macs.tolist() == [6 * count] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("channels", "size", "batch", "forced"),
    [
        (16, (8, 8), 2, False),
        (12, (7, 13), 3, True),  # strips and rows that the map does not fill
        (64, (8, 8), 2, True),  # blocks and warps share columns and k-steps
        (40, (3, 9), 2, False),
        (20, (1, 1), 2, True),
        (8, (4, 8), 140, True),  # more samples than multiprocessors: one block for each
    ],
)
def test_residual_units(place, channels, size, batch, forced, dtype):
    """Of which a launch does all."""
    place.seeded(8)
    units = residual_units(channels, size, (False, True, True, True))
    runner = units.runner(dtype, place.backend).to(place.device)
    if place.backend == "simt":
        assert len(runner.schedule(batch).stage_runs) == 1
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, channels, *size, generator=generator)
    gates = torch.randint(0, 2, (batch, 3), generator=generator).to(torch.uint8) if forced else None
    limits = torch.full((3,), 0.5, device=place.device)
    out = runner(image.to(place.device), limits, None if gates is None else gates.to(place.device))
    taken = out.gates.cpu()
    exact, logits = units.reference(image, taken, torch.float64)
    same, _ = units.reference(image, taken, dtype)
    assert_as_exact_as_torch(out.map.cpu(), same, exact)
    assert gates is None or torch.equal(taken, gates)
    scores = out.scores.cpu().double()
    torch.testing.assert_close(scores, logits.sigmoid(), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-2)
    assert forced or torch.equal(taken.bool(), scores > 0.5)
    each = 2 * 9 * channels**2 * size[0] * size[1]
    assert torch.equal(out.macs.cpu(), each * (1 + taken.sum(1)) + 3 * channels + channels)


NEARLY = ("gaternet-all", "gaternet-preact", "gaternet-inception")  # of some masks all filters are then computed


@pytest.mark.parametrize(
    ("name", "density"),
    [*((name, d) for name in GATED + MASKED for d in (0.0, 0.5, 1.0)), *((name, 0.93) for name in NEARLY)],
)
def test_forced_gates(place, name, density):
    place.seeded(3)
    model = make_planned(name)
    fast = accelerate(place, model, torch.float16)
    check_network(place, model, fast, make_images(model, 3), torch.float16, random_gates(fast, 3, density))


@pytest.mark.parametrize("name", ["resnet-pad", "skipnet-rnn", "skipnet-ff-2", "gaternet-all", "gunn"])
def test_graphs_give_what_single_launches_give(gpu, name):
    model = make_planned(name)
    plain, graphed = (
        dsn_kernels.accelerate(model, dtype=torch.float16, device=gpu, graph=graph) for graph in (False, (2, 8))
    )
    for batch in (1, 2, 5, 8):
        x = make_images(model, batch).to(gpu)
        for _ in range(2):
            assert torch.equal(graphed(x), plain(x))
        assert torch.equal(graphed.last_macs, plain.last_macs)


@pytest.mark.parametrize("name", ["skipnet-rnn", "skipnet-ff-1", "gaternet-preact", "gunn"])
def test_any_order_of_threads(host, name):
    """Pooled vectors, gates and lists come from whichever block is last: no sum depends on which that is."""
    model = make_planned(name)
    fast = accelerate(host, model, torch.float16)
    x, forced = make_images(model, 2), random_gates(fast, 2, 0.5) if name in MASKED else None
    found = []
    for seed in (11, 12, 13):
        host.seeded(seed)
        found.append((fast(x, forced_gates=forced) if forced else fast(x), fast.last_macs))
    for logits, macs in found[1:]:
        assert torch.equal(logits, found[0][0]) and torch.equal(macs, found[0][1])


@pytest.mark.parametrize("name", ["skipnet-rnn", "gaternet-all"])
def test_a_sample_does_not_depend_on_its_batch(place, name):
    check_samples_alone(place, make_planned(name), 3)


def test_masks_must_be_given(place):
    fast = accelerate(place, make_planned("gaternet-all"), torch.float16)
    runner = fast.runner
    x = make_images(fast, 1).to(place.device)
    with pytest.raises(RuntimeError, match="forced_?.?gates must say which filters run"):
        runner(x, torch.full((runner.plan.gates,), 0.5, device=place.device))
