"""CUDA's own functions on the host: warps, blocks, atomics, half types; the order of threads; blocks that skip."""

from functools import reduce

import numpy as np
import pytest


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(-9, 9, 32).astype(np.int32)


def test_warp_functions(simt, poisoned, values):
    out = poisoned((32, 16), np.int32)
    simt.warp_functions(simt.output(out, "out"), simt.input(values, "in"))
    lanes = np.arange(32)
    expected = [
        np.full(32, values[5]),
        values[lanes // 8 * 8 + (lanes + 3) % 8],
        values[np.where(lanes < 3, lanes, lanes - 3)],
        values[np.where(lanes % 16 + 3 < 16, (lanes + 3) % 32, lanes)],
        values[lanes ^ 9],
        np.full(32, sum(1 << int(lane) for lane in lanes[values > 0]), np.uint32).view(np.int32),
        np.zeros(32),
        np.ones(32),
        np.array([sum(1 << int(o) for o in lanes[values == v]) for v in values], np.uint32).view(np.int32),
        np.full(32, values.sum()),
        np.full(32, values.min()),
        np.full(32, values.max()),
        np.full(32, reduce(np.bitwise_xor, values)),
        np.where(lanes % 2, values, -values),
        np.where(lanes < 16, values[:16].sum(), values[lanes ^ 1]),
        values[lanes ^ 1],
    ]
    for column, want in enumerate(expected):
        np.testing.assert_array_equal(out[:, column], want, err_msg=f"result {column}")
    assert simt.counters()["shuffles"] == 16
    assert simt.counters()["warp_barriers"] == 1


@pytest.mark.parametrize("threads", [1, 33, 256])
def test_block_functions(simt, poisoned, threads):
    values = np.random.default_rng(threads).integers(-9, 9, threads).astype(np.int32)
    out = poisoned((threads, 3), np.int32)
    simt.block_functions(simt.output(out, "out"), simt.input(values, "in"))
    np.testing.assert_array_equal(out, np.tile([(values > 0).sum(), 1, 0], (threads, 1)))
    assert simt.counters()["block_barriers"] == 3


@pytest.mark.parametrize("host_threads", [1, 2])
def test_atomics(simt, seed, host_threads):
    simt.configure(seed=seed, host_threads=host_threads)
    values = np.random.default_rng(3).integers(-99, 99, 3 * 40).astype(np.int32)
    out = np.zeros(11, np.int32)
    out[5] = -1
    simt.atomics(simt.output(out, "out"), simt.input(values, "in"), 3)
    total = values.sum()
    expected = [total, -total, max(values.max(), 0), min(values.min(), 0)]
    expected += [reduce(f, values) for f in (np.bitwise_or, np.bitwise_and, np.bitwise_xor)]
    np.testing.assert_array_equal(out, [*expected, 7, len(values) % 10, total, total])
    counts = simt.counters()
    assert counts["shared_atomics"] == len(values)
    assert counts["global_atomics"] >= 10 * len(values) + 3  # compare-and-swap tries again


def test_half_functions(simt, poisoned):
    """One rounding for a fused multiply-add, to nearest even, in both types."""
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(1).standard_normal((64, 3)).astype(np.float32)
    out = poisoned((64, 6), np.float32)
    simt.half_functions(simt.output(out, "out"), simt.input(values, "in"))
    columns = []
    for dtype in (torch.float16, torch.bfloat16):
        a, b, c = torch.tensor(values).to(dtype).double().unbind(1)
        last = a + b if dtype is torch.float16 else torch.maximum(a, b)
        columns += [(x.to(dtype).float().numpy()) for x in (a * b + c, (a * b + c).relu(), last)]
    np.testing.assert_array_equal(out, np.stack(columns, 1))


def run_order(simt, seed, blocks, threads):
    simt.configure(seed=seed)
    out = np.zeros(1 + blocks * threads, np.int32)
    simt.order(simt.output(out, "out"), blocks, threads)
    return out[1:]


def test_a_seed_orders_blocks_warps_and_lanes(simt_module):
    orders = [run_order(simt_module, seed, 4, 96) for seed in range(6)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(4 * 96))
    assert len({tuple(order // 96) for order in orders}) > 3, "blocks"
    assert len({tuple(order // 32) for order in orders}) > 3, "warps"
    assert len({tuple(order[:32] % 32) for order in orders}) > 3, "lanes"
    np.testing.assert_array_equal(orders[0], run_order(simt_module, 0, 4, 96))


def test_a_block_that_skips_reads_its_word_and_nothing_more(simt, poisoned):
    gates = np.array([1, 0, 0, 1, 0], np.int32)
    out = poisoned((5, 64), np.int32)
    simt.skipping(simt.output(out, "out"), simt.input(gates, "gates"))
    np.testing.assert_array_equal(out, np.where(gates, 1, -1)[:, None] * np.ones((1, 64)))
    counts = simt.counters()
    assert (counts["blocks"], counts["idle_blocks"]) == (5, 3)
    assert counts["global_load_bytes"] == 5 * 64 * 4
    assert counts["global_store_bytes"] == 2 * 64 * 4
