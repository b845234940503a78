"""Asynchronous copies and clusters: results in every order of threads, exact counts."""

import numpy as np
import pytest


def reversed_pieces(values, size):
    """Each piece of ``size`` back to front, the last one padded with zeros."""
    padded = np.zeros(-(-len(values) // size) * size, values.dtype)
    padded[: len(values)] = values
    return padded.reshape(-1, size)[:, ::-1].reshape(-1)


@pytest.fixture
def run(simt, poisoned):
    def call(kernel, n, out=None):
        values = np.random.default_rng(n).integers(0, 1 << 32, n, np.uint32)
        result = poisoned(out or n, np.uint32)
        getattr(simt, kernel)(simt.output(result, "out"), simt.input(values, "in"))
        return values, result

    return call


@pytest.mark.parametrize("n", [1, 128, 511, 1280])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_cp_async_pipeline(simt, run, width, n):
    """Copies two stages ahead of their use; the source ends within one, the rest is zero."""
    values, out = run(f"pipeline_{width}", n, -(-n // 128) * 128)
    np.testing.assert_array_equal(out, reversed_pieces(values, 128))
    counts = simt.counters()
    tiles = -(-n // 128)
    assert counts["cp_async"] == tiles * 512 // width
    assert counts["global_load_bytes"] == 4 * n
    assert counts["shared_store_bytes"] == counts["shared_load_bytes"] == 512 * tiles
    assert counts["block_barriers"] == tiles


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_cluster(simt, run, size):
    """Two clusters: neighbours' shared memory by loads and by stores, and a sum at block 0 by atomics."""
    values, out = run("cluster", 64 * size)
    clusters = values.reshape(2, size, 32)
    sums = clusters.sum((1, 2), dtype=np.uint32)
    expected = sums[:, None, None] + np.roll(clusters, -1, axis=1)
    np.testing.assert_array_equal(out.reshape(2, size, 32), expected)
    counts = simt.counters()
    assert counts["cluster_barriers"] == 2 * 3
    assert counts["shared_atomics"] == 64 * size
