import pytest
import torch
from device_checks import accelerate, check_network

from tests.networks import make_images, make_planned, random_gates


def group(masks, parts, device):
    from dsn_kernels.triton.group_by_pattern import group_by_patterns

    order, offsets = group_by_patterns(masks.to(device), torch.tensor(parts, dtype=torch.int32, device=device))
    return order.tolist(), offsets.tolist()


def expected(masks):
    """By a dictionary, in order: the samples group after group, and where groups begin."""
    members = {}
    for i, row in enumerate(masks.tolist()):
        members.setdefault(tuple(row), []).append(i)
    order, starts = [], []
    for samples in members.values():
        starts.append(len(order))
        order += samples
    return order, starts + [len(masks)] * (len(masks) + 1 - len(starts))


@pytest.mark.parametrize(("batch", "layers", "distinct"), [(1, 4, 1), (9, 1, 2), (70, 96, 8), (20, 0, 1), (66, 33, 66)])
def test_equal_masks_side_by_side(place, batch, layers, distinct):
    generator = torch.Generator().manual_seed(batch)
    patterns = torch.randint(0, 2, (distinct, layers), generator=generator, dtype=torch.uint8)
    masks = patterns[torch.randint(0, distinct, (batch,), generator=generator)]
    order, offsets = expected(masks)
    assert group(masks, [[0, layers, 0, 0]], place.device) == ([order], [offsets])


def test_empty(place):
    assert group(torch.empty(0, 3, dtype=torch.uint8), [[0, 3, 0, 0]], place.device) == ([[]], [[0]])


def test_by_two_parts_of_a_mask(place):
    masks = torch.randint(0, 2, (12, 9), generator=torch.Generator().manual_seed(0)).byte()
    orders, offsets = zip(*(expected(masks[:, columns]) for columns in ([0, 1, 5], [7, 8])), strict=True)
    found = group(masks, [[0, 2, 5, 1], [4, 0, 7, 2]], place.device)
    assert found == (list(orders), list(offsets))


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
