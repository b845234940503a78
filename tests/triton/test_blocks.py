"""Each kernel against float64: dense blocks, transitions, heads and other parts of networks on their own."""

import pytest
import torch
from device_checks import (
    BLOCKS,
    PATTERNS,
    block_gates,
    check_block,
    check_chosen_conv2d,
    check_inputs_of_the_kernels_type,
    check_nan_stays_nan,
    check_residual_units,
    check_without_gates,
    forced_gates,
    images,
    make_twin,
)
from references import make_block, make_head, make_transition
from stage_parts import GATES, PARTS, make_part, make_stage, masks

DTYPES = [torch.float32, torch.float16]
# Small: each step of a product takes the interpreter milliseconds.
CASES = {name: {**options, "layers": min(options["layers"], 3)} for name, options in BLOCKS.items()}


def check(place, dtype, block, x, forced):
    check_block(place, make_twin(place, block, dtype), block, x, dtype, forced)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_dense_block(place, case, dtype):
    block = make_block(**CASES[case])
    check(place, dtype, block, images(2, CASES[case]["channels"], 6, 6), None)


@pytest.mark.parametrize("case", ["bottleneck", "plain", "add"])
@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_forced_gates(place, case, pattern):
    block = make_block(**CASES[case])
    forced = forced_gates(pattern, 2, len(block.layers))
    check(place, torch.float16, block, images(2, CASES[case]["channels"], 6, 6), forced)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 33)])
@pytest.mark.parametrize("kind", ["bottleneck", "plain", "add"])
def test_odd_sizes(place, size, kind):
    options = {"bottleneck": {}, "plain": {"bottleneck": False}, "add": {"merge": "add"}}[kind]
    block = make_block(channels=8, layers=2, growth=6, **options)
    forced = torch.tensor([[1, 1], [0, 1]], dtype=torch.uint8)
    check(place, torch.float32, block, images(2, 8, *size), forced)


def test_more_samples_than_a_word_holds(place):
    block = make_block(channels=4, layers=2, growth=4, merge="add")
    check(place, torch.float16, block, images(131, 4, 2, 2), block_gates(131, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (2, 3)])
def test_transition(place, dtype, size):
    module, x = make_transition(24, 70), images(2, 24, *size)
    check_without_gates(place, module, x, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (3, 5)])
def test_head(place, dtype, size):
    module, x = make_head(21, 70), images(2, 21, *size)
    logits = check_without_gates(place, module, x, dtype)
    assert logits.dtype == torch.float32


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


def test_inputs_of_the_kernels_type(place):
    check_inputs_of_the_kernels_type(place)


def test_nan_stays_nan(place):
    check_nan_stays_nan(place)
