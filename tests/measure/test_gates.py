"""Gate settings: what they accept and what they draw."""

import pytest
import torch

import dsn_models
from dsn_kernels.measure.gates import GateSetting
from dsn_models import UserError, zoo

LAYERS = {"coarse": 48, "fine": 48}
CONFIG = dsn_models.create("concat-bc-100").config


def draw(text, batch=64, config=CONFIG, seed=0):
    return GateSetting(text).draw(config, LAYERS, batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "text", ["", "closed", "random", "random:", "random:1.5", "random:-0.1", "random:nan", "equal:2", "OPEN"]
)
def test_refuses(text):
    with pytest.raises(UserError, match=r"trained, paper, random:P or equal:P with P in \[0, 1\]"):
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


def test_equal_is_one_pattern_for_the_batch_and_another_for_the_next():
    generator = torch.Generator().manual_seed(0)
    first, second = (GateSetting("equal:0.5").draw(CONFIG, LAYERS, 5, generator) for _ in range(2))
    for name in LAYERS:
        assert first[name].shape == (5, 48) and first[name].is_contiguous() and len(first[name].unique(dim=0)) == 1
        assert abs(first[name].double().mean().item() - 0.5) < 0.2
    assert not torch.equal(first["fine"], second["fine"])


@pytest.mark.parametrize(
    "name, counts, kept",
    [
        ("skipnet-110-rnn", {"units": 53}, 0.495),
        ("skipnet-101-rnn-imagenet", {"units": 32}, 0.701),
        ("gaternet-resnet-164", {"filters": 7200}, 5453 / 7200),
    ],
)
def test_paper_ratio_of_other_families(name, counts, kept):
    config = next(config for parts in zoo.FAMILIES.values() for config, _ in parts.zoo if config.name == name)
    (key,) = counts
    gates = GateSetting("paper").draw(config, counts, 400, torch.Generator().manual_seed(0))[key]
    first = 1 if key == "units" else 0  # a unit without a gate, which the paper counts
    assert (gates.double().sum(1).mean().item() + first) / (counts[key] + first) == pytest.approx(kept, abs=0.01)


@pytest.mark.parametrize("name", ["concat-40", "skipnet-152-rnn", "gaternet-resnet-20"])
def test_paper_gives_no_ratio_for_the_others(name):
    model = dsn_models.create(name)
    with pytest.raises(UserError, match=f"no skip ratio for {name}"):
        GateSetting("paper").draw(model.config, model.gate_counts, 1, torch.Generator())


def test_a_network_without_gates_is_open():
    config = dsn_models.create("resnet-20").config
    assert GateSetting("open").draw(config, {}, 2, torch.Generator()) is None
    with pytest.raises(UserError, match="gates is 'random:0.5', but resnet-20 has no gates; expected open"):
        GateSetting("random:0.5").draw(config, {}, 2, torch.Generator())
