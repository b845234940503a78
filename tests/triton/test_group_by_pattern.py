import pytest
import torch
from device_checks import accelerate, check_network
from small_models import make_images, random_gates
from small_planned import make_planned

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


def test_by_two_parts_of_a_mask(place):
    from dsn_kernels.triton.group_by_pattern import group_by_patterns

    masks = torch.randint(0, 2, (12, 9), generator=torch.Generator().manual_seed(0)).byte()
    parts = torch.tensor([[0, 2, 5, 1], [4, 0, 7, 2]], dtype=torch.int32)
    actual = group_by_patterns(masks.to(place.device), parts.to(place.device))
    expected = [on_cpu(masks[:, columns].contiguous()) for columns in ([0, 1, 5], [7, 8])]
    for found, by_part in zip(actual, zip(*expected, strict=True), strict=True):
        assert found.tolist() == [part.tolist() for part in by_part]


def test_samples_that_choose_alike_share_tiles(place):
    """Neither outputs nor counts tell; a sample alone gives the same bits."""
    model = make_planned("gaternet-last")
    fast = accelerate(place, model, torch.float16)
    three, images = random_gates(fast, 3), make_images(model, 5)
    forced = {name: gates[[0, 1, 0, 2, 0]] for name, gates in three.items()}
    whole = check_network(place, model, fast, images, torch.float16, forced)
    alone = fast(images[2:3].to(place.device), {name: g[2:3].to(place.device) for name, g in forced.items()})
    assert torch.equal(alone, whole[2:3])
    lists = fast.runner.lists
    assert max(lists.patterns) >= 0
    listed = lists.make(forced["filters"].to(place.device))
    assert listed.offsets[max(lists.patterns)].tolist() == [0, 3, 4, 5, 5, 5]
