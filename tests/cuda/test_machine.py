"""What the schedules know of a device."""

import pytest

from dsn_kernels import _C

H200 = _C.cuda.MACHINE


@pytest.mark.parametrize(
    ("multiprocessors", "peak_clock", "clock", "l2_rate"), [(132, 1.98e9, 1.0, 1.0), (66, 0.99e9, 0.5, 0.25)]
)
def test_rates_follow_what_a_device_reports(runner_module, multiprocessors, peak_clock, clock, l2_rate):
    """The first is an H200, which stands in where there is no device."""
    found = runner_module.machine_of(multiprocessors, peak_clock)
    assert found == pytest.approx((clock * H200["clock"], l2_rate * H200["l2_rate"]))
