"""Gate settings: what they accept and what they draw."""

import pytest
import torch

import dsn_models
from dsn_kernels.measure.gates import GateSetting
from dsn_models import UserError

LAYERS = {"coarse": 48, "fine": 48}
CONFIG = dsn_models.create("concat-bc-100").config


def draw(text, batch=64, config=CONFIG, seed=0):
    return GateSetting(text).draw(config, LAYERS, batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("text", ["", "closed", "random", "random:", "random:1.5", "random:-0.1", "random:nan", "OPEN"])
def test_refuses(text):
    with pytest.raises(UserError, match=r"expected open, shut, trained, paper or random:P with P in \[0, 1\]"):
        GateSetting(text)


@pytest.mark.parametrize("text, expected", [("open", 1), ("shut", 0), ("random:0", 1), ("random:1", 0)])
def test_all_alike(text, expected):
    gates = draw(text, batch=3)
    assert gates is not None
    for name in ("coarse", "fine"):
        assert gates[name].dtype == torch.uint8 and gates[name].shape == (3, 48)
        assert (gates[name] == expected).all()


def test_trained_forces_nothing():
    assert draw("trained") is None


def test_random_is_independent_per_sample_and_layer_and_follows_the_seed():
    gates = draw("random:.3")
    for taken in gates.values():
        assert abs(1 - taken.double().mean().item() - 0.3) < 0.03
        assert len(taken.unique(dim=0)) == 64
    again, other = draw("random:.3"), draw("random:.3", seed=1)
    assert torch.equal(gates["fine"], again["fine"]) and not torch.equal(gates["fine"], other["fine"])


def test_more_shut_at_a_higher_probability():
    less, more = draw("random:0.3"), draw("random:0.7")
    assert all((more[name] <= less[name]).all() for name in LAYERS)


def test_paper_ratio_per_branch():
    gates = draw("paper", batch=2000)
    assert abs(1 - gates["coarse"].double().mean().item() - 0.297) < 0.01
    assert abs(1 - gates["fine"].double().mean().item() - 0.153) < 0.01


def test_paper_gives_no_ratio_for_concat_40():
    with pytest.raises(UserError, match="no skip ratio for concat-40"):
        draw("paper", config=dsn_models.create("concat-40").config)
