"""Calibration of gates: harm by its definition, and the rates that gates begin with and come back to.

That of GaterNet's filters is in test_gaternet.py.
"""

import pytest
import torch
from torch.nn import functional as F

from dsn_models.data import navon
from dsn_models.dual_skipping import BRANCHES
from dsn_models.gates import PooledGate
from dsn_models.skipnet import UNITS
from dsn_models.training.calibration import calibrate, layer_harm, recentre
from tests.networks import make_images, make_small

SKIPNET = {"in_channels": 1, "image_size": 16, "stage_units": (2, 2, 2)}


def half_open(model, branch):
    gates = [m for m in getattr(model, branch).modules() if isinstance(m, PooledGate)]
    return torch.tensor([bool(gate.linear.weight.any()) for gate in gates])


@pytest.mark.long
@torch.no_grad()
def test_harm_is_the_rise_of_the_loss():
    model = make_small("concat-40", classes=(3, 5))
    images, labels = make_images(model, 6), {"coarse": torch.arange(6) % 3, "fine": torch.arange(6) % 5}

    def losses(shut):
        forced = {name: torch.ones(6, 6, dtype=torch.uint8) for name in BRANCHES}
        for gates in forced.values():
            gates[:, shut] = 0
        outputs = dict(zip(BRANCHES, model(images, forced), strict=True))
        return {name: F.cross_entropy(outputs[name], labels[name], reduction="none") for name in BRANCHES}

    alone, beside = layer_harm(model, images, labels), layer_harm(model, images, labels, [4])
    for name in BRANCHES:
        assert alone[name].shape == (6, 6)
        torch.testing.assert_close(alone[name][:, 2], losses([2])[name] - losses([])[name])
        torch.testing.assert_close(beside[name][:, 2], losses([2, 4])[name] - losses([4])[name])
        assert (beside[name][:, 4] == 0).all()


@pytest.mark.long
def test_pooled_gates_begin_half_open_or_open():
    dataset = navon.from_sklearn(True, 32)
    model = make_small("dsn-navon", image_size=64)
    target = {"coarse": 0.75, "fine": 0.875}
    calibrate(model, dataset, target, "both")
    with torch.no_grad():
        model(dataset.batch(torch.arange(32))[0])
    for name, fraction in target.items():
        ran = model.last_gates[name].float().mean(0)  # of each layer, over the images
        chosen = half_open(model, name)
        assert chosen.sum() == round(2 * (1 - fraction) * len(chosen))
        assert (ran[~chosen] == 1).all()
        # Calibrated with every layer running; what an earlier gate skips moves the ones behind it.
        assert 0.3 < ran[int(chosen.nonzero()[0])] < 0.7
    assert not model.training


@pytest.mark.long
@torch.no_grad()
def test_recentred_pooled_gates_are_open_for_half_of_the_images_again():
    dataset = navon.from_sklearn(True, 32)
    model = make_small("dsn-navon", image_size=64)
    target = {"coarse": 0.75, "fine": 0.75}
    calibrate(model, dataset, target, "both")
    for gate in model.modules():
        if isinstance(gate, PooledGate) and gate.linear.weight.any():
            gate.linear.bias.add_(1.0)  # what drift does
    recentre(model, dataset, target)
    model(dataset.batch(torch.arange(32))[0])
    for name in BRANCHES:
        ran, chosen = model.last_gates[name].float().mean(0), half_open(model, name)
        assert chosen.any()
        assert ((ran[chosen] - 0.5).abs() <= 1 / 32).all()
        assert (ran[~chosen] == 1).all()
    assert not model.training


@pytest.mark.long
@pytest.mark.parametrize(("name", "drift"), [("skipnet-38-rnn", 8.0), ("skipnet-38-ff", 30.0)])
def test_few_unit_gates_share_the_skipping_and_come_back_to_it(name, drift):
    dataset = navon.from_sklearn(True, 64, canvas=16, glyph=4)
    model = make_small(name, **SKIPNET)
    calibrate(model, dataset, {UNITS: 0.7}, "fine")
    images = dataset.batch(torch.arange(64))[0]
    with torch.no_grad():
        model(images)
        ran = model.last_gates[UNITS].float().mean(0)
        # five gates: round(0.3 * 5 / 0.8) = 2 of them share the skipping
        assert ran.sort().values[:2].mean() < 0.5 < ran.sort().values[2:].mean()
        for linear in model.last_linears():
            linear.bias[-1] += drift
        model(images)
        assert model.last_gates[UNITS].float().mean().item() > 0.8
        recentre(model, dataset, {UNITS: 0.7})
        model(images)
    assert model.last_gates[UNITS].float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert not model.training and all(p.grad is None for p in model.parameters())
