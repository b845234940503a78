"""Each kernel against float64: dense blocks, transitions and heads on their own."""

import copy

import pytest
import torch
from references import assert_as_exact_as_torch, assert_gates_agree, make_block, make_head, make_transition

from dsn_kernels.nn.gpu import GpuDenseBlock, GpuHead, GpuTransition

DTYPES = [torch.float32, torch.float16]
CASES = {
    "bottleneck": {"channels": 24, "layers": 3},
    "plain": {"channels": 12, "layers": 3, "bottleneck": False},
    "add": {"channels": 16, "layers": 3, "merge": "add"},
    "soft": {"channels": 24, "layers": 2, "gate": "soft"},
    "growth-32": {"channels": 64, "layers": 2, "growth": 32},
    "growth-20-plain": {"channels": 10, "layers": 2, "growth": 20, "bottleneck": False},
    "one-layer": {"channels": 5, "layers": 1, "growth": 7},
}
PATTERNS = {
    "open": lambda batch, layers: torch.ones(batch, layers, dtype=torch.uint8),
    "shut": lambda batch, layers: torch.zeros(batch, layers, dtype=torch.uint8),
    "random": lambda batch, layers: (torch.arange(batch * layers).view(batch, layers) * 7 % 3 > 0).to(torch.uint8),
}


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def check_block(place, dtype, block, x, forced):
    twin = GpuDenseBlock(block, dtype, place.backend).to(place.device)
    moved = None if forced is None else forced.to(place.device)
    y, taken, scores = (t.cpu() for t in twin(x.to(place.device), 0.5, moved))
    reference, _, reference_scores = copy.deepcopy(block).double()(x.double(), 0.5, taken)
    same = copy.deepcopy(block).to(dtype)(x.to(dtype), 0.5, taken)[0]
    assert_as_exact_as_torch(y, same, reference)
    if forced is not None:
        assert torch.equal(taken, forced)
    elif dtype == torch.float32:
        assert_gates_agree(taken, scores, reference_scores, 0.5)
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_dense_block(place, case, dtype):
    block = make_block(**CASES[case])
    check_block(place, dtype, block, images(2, CASES[case]["channels"], 6, 6), None)


@pytest.mark.parametrize("case", ["bottleneck", "plain", "add"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_forced_gates(place, case, pattern):
    block = make_block(**CASES[case])
    forced = PATTERNS[pattern](2, len(block.layers))
    check_block(place, torch.float16, block, images(2, CASES[case]["channels"], 6, 6), forced)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 33)])
@pytest.mark.parametrize("kind", ["bottleneck", "plain", "add"])
def test_odd_sizes(place, size, kind):
    options = {"bottleneck": {}, "plain": {"bottleneck": False}, "add": {"merge": "add"}}[kind]
    block = make_block(channels=8, layers=2, growth=6, **options)
    forced = torch.tensor([[1, 1], [0, 1]], dtype=torch.uint8)
    check_block(place, torch.float32, block, images(2, 8, *size), forced)


def test_more_samples_than_a_word_holds(place):
    block = make_block(channels=4, layers=2, growth=4, merge="add")
    check_block(place, torch.float16, block, images(131, 4, 2, 2), PATTERNS["random"](131, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (2, 3)])
def test_transition(place, dtype, size):
    module, x = make_transition(24, 70), images(2, 24, *size)
    y = GpuTransition(module, dtype, place.backend).to(place.device)(x.to(place.device)).cpu()
    same = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert_as_exact_as_torch(y, same, copy.deepcopy(module).double()(x.double()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (3, 5)])
def test_head(place, dtype, size):
    module, x = make_head(21, 70), images(2, 21, *size)
    logits = GpuHead(module, dtype, place.backend).to(place.device)(x.to(place.device)).cpu()
    assert logits.dtype == torch.float32
    same = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert_as_exact_as_torch(logits, same, copy.deepcopy(module).double()(x.double()))


def test_inputs_of_the_kernels_type(place):
    twin = GpuDenseBlock(make_block(**CASES["one-layer"]), torch.float16, place.backend).to(place.device)
    x = images(2, 5, 6, 6).half().to(place.device)
    y, _, _ = twin(x)
    assert y.dtype == torch.float16
    assert torch.equal(y, twin(x.float())[0].half())


def test_nan_stays_nan(place):
    x = images(1, 8, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    twin = GpuDenseBlock(make_block(channels=8, layers=1), torch.float16, place.backend).to(place.device)
    y, taken, scores = twin(x.to(place.device))
    assert taken.item() == 0 and scores.isnan().all(), "a NaN score exceeds no threshold"
    y, _, _ = twin(x.to(place.device), 0.5, torch.ones(1, 1, dtype=torch.uint8, device=place.device))
    assert y[0, 8:].isnan().any()
