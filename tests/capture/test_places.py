"""Where values are put: what is joined, added or skipped in place, and read again, is what it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsn_models.functional import where_open
from tests.capture.capture_checks import check_capture, make_images, settle

CASES = {}


def case(**parts):
    """Enters a function of a network's parts and an image; each part is made anew by what is given for it."""

    def enter(function):
        CASES[function.__name__] = (parts, function)
        return function

    return enter


class Network(nn.Module):
    def __init__(self, name):
        super().__init__()
        parts, self.function = CASES[name]
        for part, make in parts.items():
            self.add_module(part, make())

    def forward(self, x):
        return self.function(self, x)


def conv(inputs, outputs, kernel=3, dilation=1, **options):
    padding = dilation * (kernel // 2)
    return lambda: nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, **options)


def unit(inputs, outputs, kernel=3, **options):
    return lambda: nn.Sequential(conv(inputs, outputs, kernel, bias=False, **options)(), nn.BatchNorm2d(outputs))


def norm(channels):
    return lambda: nn.BatchNorm2d(channels)


def linear(inputs, outputs=4):
    return lambda: nn.Linear(inputs, outputs)


def excite(channels):
    return lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
    )


STEM = {"stem": unit(3, 8)}


@case(**STEM, body=unit(8, 8), late=unit(8, 8))
def a_shortcut_that_is_used_later(n, x):
    x = n.stem(x).relu()
    y = (x + n.body(x)).relu()
    return n.late(y) + x


@case(**STEM, body=unit(8, 8))
def a_body_before_its_shortcut(n, x):
    x = n.stem(x)
    y = n.body(x)
    return (y + x.relu()).relu()


@case(**STEM, body=unit(8, 8), short=unit(8, 8, 1))
def a_shortcut_after_its_body(n, x):
    x = n.stem(x).relu()
    y = n.body(x).relu()
    return (y + n.short(x)).relu()


@case(**STEM)
def twice_itself(n, x):
    x = n.stem(x)
    return (x + x).relu() + x


@case(**STEM, norm=norm(8))
def plus_its_norm(n, x):
    x = n.stem(x).relu()
    return (x + n.norm(x)).relu()


@case(**STEM, gate=excite(8))
def plus_what_is_scaled(n, x):
    x = n.stem(x).relu()
    return x + x * n.gate(x)


@case(**STEM, a=unit(8, 8), b=unit(8, 8, 1), c=unit(8, 8, 5))
def a_sum_of_four(n, x):
    x = n.stem(x).relu()
    return (n.a(x).relu() + n.b(x) + x + n.c(x)).relu()


@case(**STEM, a=unit(8, 8), b=unit(8, 8, 1))
def sums_of_sums(n, x):
    x = n.stem(x).relu()
    a, b = n.a(x), n.b(x).relu()
    return ((a + x) + (b + x)) + ((a + b) + a)


@case(**STEM, a=unit(8, 8), b=unit(8, 8, 1), last=unit(24, 4))
def a_sum_whose_terms_are_joined_too(n, x):
    x = n.stem(x).relu()
    a, b = n.a(x), n.b(x)
    return n.last(torch.cat([a, b, (a + b).relu()], 1))


@case(**STEM, a=unit(8, 8), b=unit(8, 8), last=unit(16, 4))
def a_join_of_sums(n, x):
    x = n.stem(x).relu()
    a = (x + n.a(x)).relu()
    return n.last(torch.cat([a, a + n.b(a)], 1)) + n.last(torch.cat([x, a], 1))


@case(stem=unit(3, 8), norms=lambda: nn.ModuleList(map(nn.BatchNorm2d, (8, 12, 16))),
      convs=lambda: nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (8, 12, 16)), last=conv(20, 6, 1))  # fmt: skip
def a_dense_block(n, x):
    maps = [n.stem(x)]
    for norm, convolution in zip(n.norms, n.convs, strict=True):
        maps.append(convolution(norm(torch.cat(maps, 1)).relu()))
    return n.last(torch.cat(maps, 1).relu())


@case(stem=unit(3, 8), norms=lambda: nn.ModuleList(map(nn.BatchNorm2d, (8, 12))),
      reduce=lambda: nn.ModuleList(nn.Sequential(nn.Conv2d(c, 16, 1), nn.BatchNorm2d(16)) for c in (8, 12)),
      convs=lambda: nn.ModuleList(nn.Conv2d(16, 4, 3, padding=1) for _ in range(2)), last=conv(16, 6, 1))  # fmt: skip
def a_dense_block_with_a_bottleneck(n, x):
    x = n.stem(x)
    for norm, reduce, convolution in zip(n.norms, n.reduce, n.convs, strict=True):
        x = torch.cat([x, convolution(reduce(norm(x).relu()).relu())], 1)
    return F.avg_pool2d(n.last(x.relu()), 2)


@case(**STEM, a=unit(8, 4), b=unit(8, 6), last=unit(18, 4))
def a_join_in_another_order(n, x):
    x = n.stem(x).relu()
    a, b = n.a(x).relu(), n.b(x).relu()
    return n.last(torch.cat([b, x, a], 1))


@case(**STEM, last=unit(24, 4))
def one_map_joined_twice(n, x):
    x = n.stem(x).relu()
    return n.last(torch.cat([x, x, x.relu()], 1))


@case(**STEM)
def a_join_that_is_activated_while_a_part_is_read_later(n, x):
    a = n.stem(x)
    joined = torch.cat([a, x], 1)
    active = F.hardswish(joined)
    return torch.cat([active, a], 1)


@case(**STEM, a=unit(8, 4), b=unit(8, 4))
def a_short_join_that_outlives_a_longer_one(n, x):
    x = n.stem(x).relu()
    a, b = n.a(x).sigmoid(), n.b(x).sigmoid()
    short = torch.cat([x, a], 1)
    long = torch.tanh(torch.cat([x, a, b], 1))
    return torch.cat([long, short], 1)


@case(**STEM, last=unit(9, 4))
def a_join_of_slices(n, x):
    x = n.stem(x).relu()
    return n.last(torch.cat([x[:, 3:], x[:, 1:5]], 1))


@case(**STEM, a=unit(4, 4), b=unit(4, 4), last=unit(8, 8, 1, groups=2))
def split_worked_on_and_joined_in_another_order(n, x):
    first, second = n.stem(x).relu().chunk(2, 1)
    joined = torch.cat([n.b(second).relu(), first + n.a(first)], 1)
    c, d = joined.split([2, 6], 1)
    return n.last(torch.cat([d, c], 1))


@case(**STEM, one=unit(8, 4, 1), three=unit(8, 6), inner=unit(8, 4, 1), five=unit(4, 6, 5), pooled=unit(8, 4, 1))
def an_inception_block(n, x):
    x = n.stem(x).relu()
    pooled = n.pooled(F.max_pool2d(x, 3, 1, 1)).relu()
    return torch.cat([n.one(x).relu(), n.three(x).relu(), n.five(n.inner(x).relu()).relu(), pooled], 1)


@case(**STEM, cheap=unit(8, 8, groups=8), last=unit(14, 8))
def a_ghost_module(n, x):
    x = n.stem(x).relu()
    return n.last(torch.cat([x, n.cheap(x).relu()], 1)[:, :14]) + x


@case(**STEM, body=unit(8, 8), gate=excite(8))
def excited_before_a_sum(n, x):
    x = n.stem(x).relu()
    y = n.body(x)
    return (x + y * n.gate(y)).relu()


@case(**STEM, body=unit(8, 8), gate=excite(8), last=unit(8, 4))
def excited_after_a_sum(n, x):
    x = n.stem(x).relu()
    y = (x + n.body(x)).relu()
    return n.last(y * n.gate(y)) + n.last(x)


@case(**STEM, a=linear(8), b=linear(8, 3), body=unit(8, 8))
def several_heads(n, x):
    x = n.stem(x).relu()
    early = n.a(x.mean((2, 3)))
    x = x + n.body(x)
    return {"early": early, "late": (n.b(x.mean((2, 3))), n.a(x.mean((2, 3))))}


@case(**STEM, body=unit(8, 8), head=linear(8))
def a_map_that_leaves_and_is_read_later(n, x):
    x = n.stem(x).relu()
    y = (x + n.body(x)).relu()
    return x, n.head(y.mean((2, 3)))


@case(**STEM, first=linear(8, 5), second=linear(5, 3))
def logits_that_are_read_later(n, x):
    logits = n.first(n.stem(x).mean((2, 3)))
    return logits, n.second(logits.relu())


@case(**STEM, body=unit(8, 8, stride=2))
def several_maps(n, x):
    x = n.stem(x).relu()
    return [x, n.body(x), x.mean((2, 3))]


@case(**STEM)
def features_alone(n, x):
    return n.stem(x).relu().flatten(1)


@case(**STEM, down=unit(8, 8, stride=2), side=conv(8, 8, 1), last=unit(8, 8))
def a_feature_pyramid(n, x):
    fine = n.stem(x).relu()
    coarse = n.down(fine).relu()
    fine = n.side(fine) + F.interpolate(coarse, scale_factor=2, mode="nearest")
    return n.last(fine), coarse


@case(**STEM, down=unit(8, 12, stride=2), last=unit(20, 4))
def a_u_net(n, x):
    fine = n.stem(x).relu()
    coarse = n.down(fine).relu()
    return n.last(torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], 1))


@case(**STEM)
def pools_with_ceil_mode(n, x):
    x = n.stem(x)
    return [
        F.max_pool2d(x, 3, 2, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
        F.max_pool2d(x, (2, 3), 2),
    ]


@case(stem=lambda: nn.Conv2d(3, 8, 3, stride=2), last=lambda: nn.Conv2d(8, 4, (4, 2), padding="same"))
def uneven_padding(n, x):
    return n.last(n.stem(F.pad(x, (0, 1, 0, 1))).relu())


@case(**STEM, a=linear(8 * 12 * 10, 16), b=linear(16, 8), c=linear(8))
def linear_maps_of_a_flattened_map(n, x):
    x = torch.flatten(n.stem(x), 1).relu()
    return n.c(n.b(F.dropout(n.a(x).relu(), training=False)).relu())


@case(**STEM, norm=norm(8), a=conv(8, 4), b=conv(8, 4, 1), c=conv(8, 4, groups=2))
def a_batch_norm_that_several_convolutions_read(n, x):
    y = n.norm(n.stem(x)).relu()
    return torch.cat([n.a(y), n.b(y), n.c(y)], 1) + 1


@case(**STEM, a=unit(8, 8, dilation=2), b=unit(8, 12, groups=4, stride=2), c=unit(12, 12, 5, groups=12))
def dilated_and_grouped(n, x):
    return n.c(n.b(n.a(n.stem(x).relu()).relu()).relu())


@case(**STEM, a=conv(8, 8), b=conv(8, 8, 1), norm=norm(8))
def parallel_convolutions_that_become_one(n, x):
    x = n.stem(x)
    return (n.a(x) + n.b(x) + n.norm(x)).relu()


@case(**STEM, score=linear(8, 1), a=unit(8, 8), b=unit(8, 8))
def a_gate_whose_other_side_is_computed_last(n, x):
    x = n.stem(x).relu()
    open = n.score(x.mean((2, 3))).squeeze(1) > 0
    return where_open(open, n.a(x), n.b(x))


@case(**STEM, score=linear(8, 1), a=unit(8, 8), b=unit(8, 8))
def a_gated_sum_of_others(n, x):
    x = n.stem(x).relu()
    open = n.score(x.mean((2, 3))).squeeze(1) > 0
    a = n.a(x)
    return where_open(open, (a + n.b(a)).relu(), x + x)


@case(**STEM, score=conv(8, 1, 1), last=unit(8, 8))
def a_gate_on_a_pooled_map_that_is_then_written_over(n, x):
    score = n.score(n.stem(x))
    open = score.mean((2, 3)).squeeze(1) > 0
    score = F.silu(score * 2)
    return where_open(open, n.last(n.stem(x)), n.stem(x) + 1), score


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_values_keep_their_places(name):
    torch.manual_seed(0)
    checked = check_capture(settle(Network(name)), make_images())
    assert checked.whole, checked.fast.summary()


def test_a_residual_unit_is_computed_in_place():
    torch.manual_seed(0)
    checked = check_capture(settle(Network("a_shortcut_that_is_used_later")), make_images())
    kinds = [node.op for node in checked.plans[0].graph.nodes]
    assert kinds.count("conv2d") == 3 and kinds.count("pointwise") <= 2


def test_a_dense_block_copies_nothing():
    torch.manual_seed(0)
    checked = check_capture(settle(Network("a_dense_block")), make_images())
    assert [node.op for node in checked.plans[0].graph.nodes] == ["load", *["conv2d"] * 5, "store"]
