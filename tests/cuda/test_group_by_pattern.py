import pytest
import torch

from dsn_kernels.ops.group_by_pattern import group_by_pattern


def rows(batch, layers, distinct, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 2, (distinct, layers), generator=generator, dtype=torch.uint8)
    return patterns[torch.randint(0, distinct, (batch,), generator=generator)]


def expected(gates):
    """By a dictionary, in order."""
    members = {}
    for i, row in enumerate(gates.tolist()):
        members.setdefault(tuple(row), []).append(i)
    order = [i for group in members.values() for i in group]
    ids = {i: g for g, group in enumerate(members.values()) for i in group}
    starts, at = [], 0
    for group in members.values():
        starts.append(at)
        at += len(group)
    count = len(gates)
    return order, [ids[i] for i in range(count)], starts + [count] * (count + 1 - len(starts))


CASES = [(1, 4, 1), (5, 1, 2), (64, 96, 8), (300, 7, 60), (130, 0, 1), (257, 33, 257)]


@pytest.mark.parametrize(("batch", "layers", "distinct"), CASES)
def test_cpu(batch, layers, distinct):
    gates = rows(batch, layers, distinct)
    assert [t.tolist() for t in group_by_pattern(gates)] == list(expected(gates))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("batch", "layers", "distinct"), CASES)
def test_kernels_on_the_host(simt, batch, layers, distinct, seed):
    simt.configure(seed=seed)
    gates = rows(batch, layers, distinct)
    first = torch.full((batch,), -1, dtype=torch.int32)
    order, group, offsets = (torch.full((n,), -1) for n in (batch, batch, batch + 1))
    outputs = [simt.output(t) for t in (first, order, group, offsets)]
    simt.group_by_pattern(simt.input(gates), *outputs, batch, layers)
    assert [order.tolist(), group.tolist(), offsets.tolist()] == list(expected(gates))


@pytest.mark.parametrize(("batch", "layers", "distinct"), [*CASES, (3000, 96, 3000)])
def test_gpu(gpu, batch, layers, distinct):
    gates = rows(batch, layers, distinct)
    assert [t.tolist() for t in group_by_pattern(gates.to(gpu))] == list(expected(gates))


def test_empty():
    order, group, offsets = group_by_pattern(torch.empty(0, 3, dtype=torch.uint8))
    assert order.shape == group.shape == (0,) and offsets.tolist() == [0]


@pytest.mark.parametrize("gates", [torch.zeros(3), torch.zeros(3, 4), torch.zeros(3, dtype=torch.uint8)])
def test_bad_gates(gates):
    with pytest.raises(RuntimeError, match=r"group_by_pattern: gates must (be uint8|have shape) .* got"):
        group_by_pattern(gates)
