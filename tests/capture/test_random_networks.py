"""Networks drawn at random: sums, joins, parts, factors and gates in any order."""

import pytest
import torch

from tests.capture.capture_checks import Checked, make_images, settle
from tests.capture.random_networks import RandomNetwork

#: Seeds and numbers of steps that were wrong once, of joins, gates and outputs that were written over.
ONCE_WRONG = [(28, 8), (107, 14), (1003, 14), (1030, 14)]


@pytest.mark.long
@pytest.mark.parametrize(("seed", "steps"), [*ONCE_WRONG, *((seed, 12) for seed in range(3000, 3026))])
def test_a_random_network(seed, steps):
    model, x = settle(RandomNetwork(seed, steps), seed), make_images(5, seed=seed)
    checked = Checked(model, x)
    assert checked.whole, checked.fast.summary()
    checked.check(x)
    gates = len(checked.gates)
    if gates:
        generator = torch.Generator().manual_seed(seed)
        checked.check(x, torch.randint(2, (5, gates), generator=generator, dtype=torch.uint8))
        open, shut = (torch.full((5, gates), value, dtype=torch.uint8) for value in (1, 0))
        checked.check(x, open)
        dense = checked.fast.last_macs
        checked.check(x, shut)
        assert (checked.fast.last_macs <= dense).all()
