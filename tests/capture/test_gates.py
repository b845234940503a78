"""The gate words in every shape of code: what is shut is not computed, and what anybody else needs always is."""

import pytest
import torch
from torch import nn

import dsn_kernels
from dsn_models.errors import UserError
from dsn_models.functional import choose_filters, where_open
from tests.capture.capture_checks import Checked, check_capture, make_images, settle

ALL = {"open": 1, "shut": 0}


class Scored(nn.Module):
    """Two convolutions behind a stem, and a score of the pooled stem."""

    def __init__(self, forward):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.linear, self.head, self.early = nn.Linear(8, 1), nn.Linear(8, 5), nn.Linear(8, 5)
        self.function = forward

    def score(self, x):
        return self.linear(x.mean((2, 3))).squeeze(1)

    def forward(self, x):
        return self.function(self, self.stem(x).relu())


def pooled(x):
    return x.mean((2, 3))


def body_first(n, x):
    y = n.b(n.a(x).relu())
    return where_open(n.score(x) > 0, y, x)


def other_used_later(n, x):
    return where_open(n.score(x) > 0, x + n.a(x), x) + n.b(x)


def exit_early(n, x):
    y = n.b(n.a(x).relu())
    return where_open(n.score(x) > 0, n.head(pooled(y)), n.early(pooled(x)))


def exit_early_with_the_other_last(n, x):
    open = n.score(x) > 0
    late = n.head(pooled(n.b(n.a(x).relu())))
    return where_open(open, late, n.early(pooled(x)))


def one_decision_for_two(n, x):
    open = n.score(x) > 0
    x = where_open(open, x + n.a(x), x)
    return where_open(open, n.b(x).relu(), x)


def one_within_another(n, x):
    inner = where_open(n.score(x) > 0.1, n.a(x).relu(), x)
    return where_open(n.score(x) > -0.1, x + n.b(inner), x)


def joined(n, x):
    return torch.cat([where_open(n.score(x) > 0, n.a(x), x), x, n.b(x)], 1)


def beyond_one(n, x):
    return where_open(10 * n.score(x) > 2.5, n.a(x), n.b(x))


SKIPPED = {  # convolutions that nothing needs where all gates are shut
    body_first: 2,
    other_used_later: 1,
    exit_early: 2,
    exit_early_with_the_other_last: 2,
    one_decision_for_two: 2,
    one_within_another: 2,
    joined: 1,
    beyond_one: 1,
}


@pytest.mark.long
@pytest.mark.parametrize("function", SKIPPED, ids=lambda function: function.__name__)
def test_what_a_gate_shuts_is_not_computed(function):
    torch.manual_seed(0)
    x = make_images(6)
    checked = Checked(Scored(function).eval(), x)
    assert checked.whole, checked.fast.summary()
    checked.check(x)
    macs = {}
    for name, value in ALL.items():
        checked.check(x, torch.full((6, len(checked.gates)), value, dtype=torch.uint8))
        macs[name] = checked.fast.last_macs
    heads = 8 * 5 if "exit" in function.__name__ else 0
    scores = 8 if function is one_within_another else 0  # of the inner gate, which is asked where the outer is open
    saved = SKIPPED[function] * 8 * 8 * 9 * 120 + heads + scores
    assert torch.equal(macs["open"] - macs["shut"], torch.full((6,), saved))


@pytest.mark.parametrize("batch", [0, 1, 3, 17])
def test_batches(batch):
    torch.manual_seed(0)
    checked = Checked(Scored(other_used_later).eval(), make_images())
    if batch:
        checked.check(make_images(batch))
    else:
        assert checked.fast(make_images(0)).shape == (0, 8, 12, 10) and checked.fast.last_macs.shape == (0,)


def test_what_others_need_is_always_computed():
    def twice(n, x):
        y = n.a(x)
        return where_open(n.score(x) > 0, y.relu(), x) + y

    torch.manual_seed(0)
    checked = check_capture(Scored(twice).eval(), make_images())
    convolutions = [node for node in checked.plans[0].graph.nodes if node.op == "conv2d"]
    assert len(convolutions) == 2 and all(node.only_if < 0 for node in convolutions)


@pytest.mark.long
@pytest.mark.parametrize("order", ["norm, choose, relu", "norm, relu, choose", "choose, sigmoid"])
def test_chosen_filters(order):
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mask = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
            self.conv, self.norm, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.stem(x).relu()
            mask, y = self.mask(x.mean((2, 3))) > 0, self.conv(x)
            for step in order.split(", "):
                y = {"norm": self.norm, "relu": torch.relu, "sigmoid": torch.sigmoid}.get(
                    step, lambda y: choose_filters(y, mask)
                )(y)
            return self.last(y)

    torch.manual_seed(0)
    x = make_images(6)
    checked = Checked(settle(Chosen()), x)
    checked.check(x)
    checked.check(x, torch.randint(2, (6, 8), dtype=torch.uint8))
    checked.check(x, torch.zeros(6, 8, dtype=torch.uint8))


class DecidedByTorch(nn.Module):
    """A gate within another; torch decides both."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.scores = nn.Linear(8, 4)

    def open(self, x):
        return (self.scores(x.mean((2, 3))).softmax(1).amax(1) > 0.3).to(x.dtype)

    def forward(self, x):
        x = self.stem(x)
        y = where_open(self.open(x), x + self.inner(x), x)
        return where_open(self.open(2 * x), y + self.outer(y), x).mean((2, 3))


def test_a_gate_of_torch_within_another_is_refused():
    with pytest.raises(UserError, match="torch computes a part of what its gate governs; a gate would be lost"):
        dsn_kernels.accelerate(DecidedByTorch(), example=torch.zeros(1, 3, 8, 8), backend="cpu")


@torch.no_grad()
def test_gates_leave_as_tensors():
    def told(n, x):
        open = n.score(x) > 0
        y = where_open(open, x + n.a(x), x)
        return n.head(pooled(y)) * (1 + open.to(x.dtype)[:, None]), open, open.to(torch.uint8)

    torch.manual_seed(0)
    model, x = Scored(told).eval(), make_images(6)
    scores = model.score(model.stem(x).relu()).sort().values
    model.linear.bias -= scores[2:4].mean()
    fast = dsn_kernels.accelerate(model, example=x, backend="cpu")
    for actual, expected in zip(fast(x), model(x), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert 0 < fast(x)[1].sum() < 6
    forced = torch.tensor([[1], [0], [1], [0], [0], [1]], dtype=torch.uint8)
    logits, open, number = fast(x, forced_gates=dict.fromkeys(fast.layers, forced))
    assert torch.equal(open, forced[:, 0] != 0) and torch.equal(number, forced[:, 0])


def test_a_gate_that_leaves_from_within_another():
    """The model says whether it is open where the other is shut, too: torch decides it, and the plan asks the other."""

    def told(n, x):
        inner = n.score(x) > 0
        y = where_open(inner, n.a(x).relu(), x)
        return where_open(-n.score(x) > -0.02, x + n.b(y), x), inner.to(x.dtype)

    torch.manual_seed(0)
    x, model = make_images(6), settle(Scored(told))
    scores = model.score(model.stem(x).relu()).sort().values
    model.linear.bias.data -= scores[1:3].mean()
    checked = check_capture(model, x)
    assert checked.fast(x)[1].sum() == 4
    inner, outer = checked.joined(checked.fast.last_gates).T
    assert 0 < inner.sum() < outer.sum() < 6
    # A threshold is for what plans decide.
    with pytest.raises(UserError, match=r"thresholds name \['inner'\], which are no gates"):
        checked.fast(x, thresholds={"inner": 0.3})
    checked.fast(x, thresholds=1.0)
    assert checked.joined(checked.fast.last_gates).sum() == 0
