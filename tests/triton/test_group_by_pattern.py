import pytest
import torch

from dsn_kernels.ops.group_by_pattern import group_by_pattern as on_cpu


@pytest.mark.parametrize(("batch", "layers", "distinct"), [(1, 4, 1), (9, 1, 2), (70, 96, 8), (20, 0, 1), (66, 33, 66)])
def test_equals_the_cpu(place, batch, layers, distinct):
    from dsn_kernels.triton.group_by_pattern import group_by_pattern

    generator = torch.Generator().manual_seed(batch)
    patterns = torch.randint(0, 2, (distinct, layers), generator=generator, dtype=torch.uint8)
    gates = patterns[torch.randint(0, distinct, (batch,), generator=generator)]
    actual = group_by_pattern(gates.to(place.device))
    assert [t.tolist() for t in actual] == [t.tolist() for t in on_cpu(gates)]


def test_empty_and_refused(place):
    from dsn_kernels.triton.group_by_pattern import group_by_pattern

    order, group, offsets = group_by_pattern(torch.empty(0, 3, dtype=torch.uint8, device=place.device))
    assert order.shape == group.shape == (0,) and offsets.tolist() == [0]
    with pytest.raises(RuntimeError, match=r"group_by_pattern: gates must be uint8 .* got torch.float32 \[3, 4\]"):
        group_by_pattern(torch.zeros(3, 4))
