"""Gates: scores, multipliers, and what flows back."""

import pytest
import torch

from dsn_models import UserError
from dsn_models.gates import PooledGate, set_slope


def make(kind="hard", slope=1.0):
    torch.manual_seed(0)
    gate = PooledGate(5, kind).double()
    set_slope(gate, slope)
    return gate


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_score_formula(kind):
    gate, pooled = make(kind, slope=7.0), torch.randn(64, 5, dtype=torch.float64) * 3
    z = pooled @ gate.linear.weight[0] + gate.linear.bias
    expected = (z + 0.5).clamp(0, 1) if kind == "hard" else 1 / (1 + (-z).exp())
    torch.testing.assert_close(gate.score(pooled), expected)


def test_hard_multiplier_has_the_slope():
    gate, pooled = make(slope=7.0), torch.randn(64, 5, dtype=torch.float64)
    torch.testing.assert_close(gate(pooled), (7 * gate.logit(pooled) + 0.5).clamp(0, 1))


@pytest.mark.parametrize("slope", [1.0, 7.0, 100.0])
def test_straight_through_backward_is_slope_one_without_clipping(slope):
    gate = make(slope=slope)
    pooled = (torch.randn(64, 5, dtype=torch.float64) * 5).requires_grad_()
    weights = torch.randn(64, dtype=torch.float64)
    multiplier = gate(pooled)
    assert ((multiplier == 0) | (multiplier == 1)).any()
    (multiplier * weights).sum().backward()
    torch.testing.assert_close(pooled.grad, weights[:, None] * gate.linear.weight.detach())
    torch.testing.assert_close(gate.linear.bias.grad, weights.sum()[None])


def test_hard_gradient_is_the_true_one_where_nothing_is_clipped():
    gate = make()
    pooled = (torch.randn(4, 5, dtype=torch.float64) * 0.05).requires_grad_()
    assert ((gate(pooled) > 0.01) & (gate(pooled) < 0.99)).all()
    assert torch.autograd.gradcheck(gate, (pooled,))


def test_soft_gradient_by_finite_differences():
    pooled = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(make("soft"), (pooled,))


def test_a_gate_that_normalises():
    """In training by the batch, in inference, or frozen, by what it saw; its scale is then no matter of the input's."""
    gate = PooledGate(5, "soft", normalised=True).double()
    pooled = torch.randn(64, 5, dtype=torch.float64) * torch.tensor([0.01, 1, 1, 10, 100]) + 3
    z = gate.linear((pooled - pooled.mean(0)) / (pooled.var(0, correction=0) + gate.norm.eps).sqrt()).squeeze(1)
    for _ in range(200):
        torch.testing.assert_close(gate.logit(pooled), z)
    gate.requires_grad_(False)
    frozen = gate.logit(pooled)
    assert not torch.equal(frozen, z)
    torch.testing.assert_close(gate.eval().logit(pooled), frozen)
    torch.testing.assert_close(frozen, z, atol=0.05, rtol=0.05)  # of the unbiased variance
    torch.testing.assert_close(gate.logit(pooled[:1]), frozen[:1])


def test_errors():
    with pytest.raises(UserError, match="gate kind is 'firm'; expected 'hard' or 'soft'"):
        PooledGate(3, "firm")
    with pytest.raises(UserError, match="slope is 0"):
        set_slope(PooledGate(3), 0)
