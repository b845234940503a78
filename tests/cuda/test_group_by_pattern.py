"""The kernels that put samples with equal masks side by side; what that saves is in test_chosen_filters.py."""

import pytest
import torch


def rows(batch, layers, distinct, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 2, (distinct, layers), generator=generator, dtype=torch.uint8)
    return patterns[torch.randint(0, distinct, (batch,), generator=generator)]


def expected(gates):
    """The samples, group after group, in the order of each group's first member."""
    members = {}
    for i, row in enumerate(gates.tolist()):
        members.setdefault(tuple(row), []).append(i)
    return [i for group in members.values() for i in group]


CASES = [(1, 4, 1), (5, 1, 2), (64, 96, 8), (300, 7, 60), (130, 0, 1), (257, 33, 257)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("batch", "layers", "distinct"), CASES)
def test_kernels_on_the_host(simt, batch, layers, distinct, seed):
    simt.configure(seed=seed)
    gates = rows(batch, layers, distinct)
    first, order = torch.full((batch,), -1, dtype=torch.int32), torch.full((batch,), -1)
    simt.group_by_pattern(simt.input(gates), simt.output(first), simt.output(order), batch, layers)
    assert order.tolist() == expected(gates)
