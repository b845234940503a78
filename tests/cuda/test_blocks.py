"""Each kernel against float64: dense blocks, transitions and heads on their own."""

import copy

import pytest
import torch
from references import assert_as_exact_as_torch, assert_gates_agree, make_block, make_head, make_transition

from dsn_kernels.nn.gpu import GpuDenseBlock, GpuHead, GpuTransition

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = {
    "bottleneck": {"channels": 24, "layers": 4},
    "plain": {"channels": 24, "layers": 4, "bottleneck": False},
    "add": {"channels": 16, "layers": 4, "merge": "add"},
    "soft": {"channels": 24, "layers": 3, "gate": "soft"},
    "growth-6": {"channels": 12, "layers": 3, "growth": 6, "bottleneck": False},
    "growth-32": {"channels": 64, "layers": 2, "growth": 32},
    "growth-20-plain": {"channels": 10, "layers": 2, "growth": 20, "bottleneck": False},
    "one-layer": {"channels": 5, "layers": 1, "growth": 7},
}


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def random_gates(batch, layers, seed=0):
    return torch.randint(0, 2, (batch, layers), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def forced_gates(pattern, batch, layers):
    return {
        "own": None,
        "open": torch.ones(batch, layers, dtype=torch.uint8),
        "shut": torch.zeros(batch, layers, dtype=torch.uint8),
        "random": random_gates(batch, layers),
    }[pattern]


def same_dtype(module, x, dtype, *args):
    """What PyTorch gives in the kernels' precision, on the same input."""
    return copy.deepcopy(module).to(dtype)(x.to(dtype), *args)


def check_block(place, dtype, block, x, forced, seed=0, clusters=True):
    place.seeded(seed)
    twin = GpuDenseBlock(block, dtype, place.backend).to(place.device)
    twin.runner.clusters = clusters
    y, taken, scores = (
        t.cpu() for t in twin(x.to(place.device), 0.5, None if forced is None else forced.to(place.device))
    )
    exact = copy.deepcopy(block).double()
    reference, _, reference_scores = exact(x.double(), 0.5, taken)
    assert_as_exact_as_torch(y, same_dtype(block, x, dtype, 0.5, taken)[0], reference)
    if forced is not None:
        assert torch.equal(taken, forced)
    if dtype == torch.float32 and forced is None:
        assert_gates_agree(taken, scores, reference_scores, 0.5)
    elif dtype == torch.float32:
        torch.testing.assert_close(scores.double(), reference_scores, rtol=0, atol=2e-5)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=list(CASES))
@pytest.mark.parametrize("pattern", ["own", "open", "shut", "random"])
def test_dense_block(place, case, pattern, dtype):
    block = make_block(**CASES[case])
    x = images(3, CASES[case]["channels"], 8, 8)
    check_block(place, dtype, block, x, forced_gates(pattern, 3, len(block.layers)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("case", "clusters"), [("bottleneck", True), ("bottleneck", False), ("plain", True), ("add", True)]
)
def test_any_order_of_threads(place, case, clusters, seed):
    """Several tiles of a sample, so that the last block to finish decides the gates, or a cluster's each for itself."""
    block = make_block(**CASES[case])
    x = images(2, CASES[case]["channels"], 20, 12)
    first, again = (check_block(place, torch.float16, block, x, None, s, clusters) for s in (seed, seed + 100))
    assert torch.equal(first, again), "sums have a fixed order"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", ["own", "open", "shut", "random"])
def test_a_launch_for_each_layer(host, pattern, dtype):
    """As on devices without clusters of thread blocks, where no cluster walks the layers of a block."""
    block = make_block(**CASES["bottleneck"])
    x = images(3, CASES["bottleneck"]["channels"], 8, 8)
    check_block(host, dtype, block, x, forced_gates(pattern, 3, len(block.layers)), clusters=False)


def test_more_layers_than_a_mask_holds(place):
    """33 layers: slices beyond the first word of the live masks."""
    block = make_block(channels=4, layers=33, growth=12)
    check_block(place, torch.float16, block, images(2, 4, 4, 4), random_gates(2, 33))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2), (7, 7), (5, 33), (9, 70), (31, 32)])
@pytest.mark.parametrize("kind", ["bottleneck", "plain", "add"])
def test_odd_sizes(place, size, kind):
    options = {"bottleneck": {}, "plain": {"bottleneck": False}, "add": {"merge": "add"}}[kind]
    block = make_block(channels=8, layers=3, growth=6, **options)
    forced = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    dtype = torch.float32 if kind == "bottleneck" else torch.float16
    check_block(place, dtype, block, images(3, 8, *size), forced)


def test_more_samples_than_a_word_holds(place):
    block = make_block(channels=4, layers=2, growth=4, bottleneck=False)
    check_block(place, torch.float16, block, images(131, 4, 2, 2), random_gates(131, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (2, 3), (33, 20)])
def test_transition(place, dtype, size):
    place.seeded(1)
    module, x = make_transition(24, 70), images(2, 24, *size)
    y = GpuTransition(module, dtype, place.backend).to(place.device)(x.to(place.device)).cpu()
    assert_as_exact_as_torch(y, same_dtype(module, x, dtype), copy.deepcopy(module).double()(x.double()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (3, 5)])
def test_head(place, dtype, size):
    place.seeded(1)
    module, x = make_head(21, 11), images(2, 21, *size)
    logits = GpuHead(module, dtype, place.backend).to(place.device)(x.to(place.device)).cpu()
    assert logits.dtype == torch.float32
    assert_as_exact_as_torch(logits, same_dtype(module, x, dtype), copy.deepcopy(module).double()(x.double()))


def test_inputs_of_the_kernels_type(place):
    block = make_block(**CASES["bottleneck"])
    twin = GpuDenseBlock(block, torch.float16, place.backend).to(place.device)
    x = images(2, 24, 6, 6).half().to(place.device)
    y, _, _ = twin(x)
    assert y.dtype == torch.float16
    assert torch.equal(y, twin(x.float())[0].half())


def test_nan_stays_nan(place):
    block = make_block(channels=8, layers=1)
    x = images(1, 8, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    twin = GpuDenseBlock(block, torch.float16, place.backend).to(place.device)
    y, taken, scores = twin(x.to(place.device))
    assert taken.item() == 0 and scores.isnan().all(), "a NaN score exceeds no threshold"
    y, _, _ = twin(x.to(place.device), 0.5, torch.ones(1, 1, dtype=torch.uint8, device=place.device))
    assert y[0, 8:].isnan().any()
