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
    make_fast,
)
from references import make_block, make_head, make_transition
from stage_parts import GATES, PARTS, make_part, make_stage, masks

import dsn_kernels
import dsn_models
from tests.checks import check_network
from tests.networks import make_images, random_gates, randomise

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def check(place, dtype, block, x, forced, seed=0, clusters=True):
    place.seeded(seed)
    fast = make_fast(place, block, dtype)
    fast.runner.clusters = clusters
    return check_block(place, fast, block, x, dtype, forced)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_dense_block(place, case, pattern, dtype):
    block = make_block(**BLOCKS[case])
    x = images(3, BLOCKS[case]["channels"], 8, 8)
    check(place, dtype, block, x, forced_gates(pattern, 3, len(block.layers)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("case", "clusters"), [("bottleneck", True), ("bottleneck", False), ("plain", True), ("add", True)]
)
def test_any_order_of_threads(place, case, clusters, seed):
    """Several tiles of a sample, so that the last block to finish decides the gates, or a cluster's each for itself."""
    block = make_block(**BLOCKS[case])
    x = images(2, BLOCKS[case]["channels"], 20, 12)
    first, again = (check(place, torch.float16, block, x, None, s, clusters) for s in (seed, seed + 100))
    assert torch.equal(first, again), "sums have a fixed order"


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_launch_for_each_layer(host, pattern, dtype):
    """As on devices without clusters of thread blocks, where no cluster walks the layers of a block."""
    block = make_block(**BLOCKS["bottleneck"])
    x = images(3, BLOCKS["bottleneck"]["channels"], 8, 8)
    check(host, dtype, block, x, forced_gates(pattern, 3, len(block.layers)), clusters=False)


def test_more_layers_than_a_mask_holds(place):
    """33 layers: slices beyond the first word of the live masks."""
    block = make_block(channels=4, layers=33, growth=12)
    check(place, torch.float16, block, images(2, 4, 4, 4), block_gates(2, 33))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2), (7, 7), (5, 33), (9, 70), (31, 32)])
@pytest.mark.parametrize("kind", ["bottleneck", "plain", "add"])
def test_odd_sizes(place, size, kind):
    options = {"bottleneck": {}, "plain": {"bottleneck": False}, "add": {"merge": "add"}}[kind]
    block = make_block(channels=8, layers=3, growth=6, **options)
    forced = torch.tensor([[1, 0, 1], [0, 1, 1], [0, 0, 1]], dtype=torch.uint8)
    dtype = torch.float32 if kind == "bottleneck" else torch.float16
    check(place, dtype, block, images(3, 8, *size), forced)


def test_more_samples_than_a_word_holds(place):
    block = make_block(channels=4, layers=2, growth=4, bottleneck=False)
    check(place, torch.float16, block, images(131, 4, 2, 2), block_gates(131, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (9, 14), (2, 3), (33, 20)])
def test_transition(place, dtype, size):
    place.seeded(1)
    module, x = make_transition(24, 70), images(2, 24, *size)
    check_without_gates(place, module, x, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(8, 8), (3, 5)])
def test_head(place, dtype, size):
    place.seeded(1)
    module, x = make_head(21, 11), images(2, 21, *size)
    logits = check_without_gates(place, module, x, dtype)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
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


@pytest.mark.parametrize("bottleneck", [True, False])
def test_layers_of_one_channel(place, bottleneck):
    """A layer that adds a single channel is no chosen filter."""
    model = randomise(
        dsn_models.create("concat-40", growth_rate=1, block_layers=(3, 2), bottleneck=bottleneck, image_size=8)
    )
    fast = dsn_kernels.accelerate(model, backend=place.backend)
    for forced in (None, random_gates(fast, 3)):
        check_network(model, fast, make_images(fast, 3), forced=forced, device=place.device)
