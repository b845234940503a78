"""The smallest kernel: how one is bound, run and counted."""

import numpy as np
import pytest


@pytest.mark.parametrize("n", [1, 127, 128, 300])
def test_scale(simt, poisoned, n):
    values = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    out = poisoned(n, np.float32)
    simt.scale(simt.output(out, "out"), simt.input(values, "in"), 3.0)
    pieces = [values[first : first + 128][::-1] for first in range(0, n, 128)]
    np.testing.assert_array_equal(out, 3 * np.concatenate(pieces))
    counts = simt.counters()
    assert counts["launches"] == 1
    assert counts["blocks"] == counts["block_barriers"] == -(-n // 128)
    assert counts["global_load_bytes"] == counts["global_store_bytes"] == 4 * n
    assert counts["shared_load_bytes"] == counts["shared_store_bytes"] == 4 * n
