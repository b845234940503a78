"""The shared memory that a kernel may ask for: raised once, to what the device gives, and never lowered by a launch."""

import numpy as np
import pytest

KIB = 1024


@pytest.fixture
def total(simt_module):
    """What the launches add up to, in words; the array and its buffer."""
    array = np.zeros(1, np.int32)
    return array, simt_module.output(array, "out")


def test_a_kernel_for_which_nobody_asked_has_48_kib(simt_module, total):
    array, out = total
    with pytest.raises(simt_module.Error, match="more shared memory than a block may have"):
        simt_module.launch_unasked(out, 48 * KIB + 4)
    simt_module.launch_unasked(out, 48 * KIB)
    assert array[0] == 12 * KIB


@pytest.mark.parametrize(("first", "second"), [(200, 64), (64, 200), (227, 1)])
def test_launches_of_different_sizes_in_one_stream(simt_module, total, first, second):
    """Both are put there before either runs, as a graph holds nodes of all sizes."""
    array, out = total
    simt_module.launch_in_a_row(out, first * KIB, second * KIB)
    assert array[0] == (first + second) * KIB // 4


def test_two_host_threads_at_once(simt_module, total):
    array, out = total
    assert simt_module.launch_from_two_threads(out, 200 * KIB, 64 * KIB, 500) == 0
    assert array[0] == 500 * (200 + 64) * KIB // 4


def test_more_than_the_device_has_is_refused(simt_module, total):
    _, out = total
    with pytest.raises(simt_module.Error, match="more shared memory than a block may have"):
        simt_module.launch_in_a_row(out, 228 * KIB, 64 * KIB)


def test_a_limit_that_is_lowered_refuses_what_waits(simt_module, total):
    """So the runner would tell of a launch() that lowered it."""
    array, out = total
    with pytest.raises(simt_module.Error, match="last_word_kernel.*is refused now"):
        simt_module.launch_under_a_limit(out, 200 * KIB, 64 * KIB, 64 * KIB)
    assert array[0] == 0
    simt_module.launch_under_a_limit(out, 64 * KIB, 64 * KIB, 227 * KIB)
