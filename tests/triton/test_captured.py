"""A captured network with recurrent gates on the Triton kernels."""

import pytest

from tests.capture.test_recurrent import check_on


@pytest.mark.parametrize("batch", [1, 6])
def test_recurrent_gates(place, batch):
    check_on(place, batch)
