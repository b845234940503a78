"""What each gate of a gated network decides on, in MACs."""

import pytest
import torch

import dsn_models
from dsn_models import UserError
from dsn_models.computation import computation, gate_macs, unit_macs, used_parameters
from dsn_models.macs import count_macs
from tests.networks import make_small


@pytest.mark.parametrize("name", ["dsn-navon", "add-166"])
def test_parameters_that_an_image_uses(name):
    """With all gates open all of a branch and the stem; a layer that half of the images skip costs half of it less."""
    model = make_small(name)
    ones = {branch: [1.0] * count for branch, count in model.gate_counts.items()}
    whole = used_parameters(model, ones)
    stem = sum(p.numel() for p in model.stem.parameters())
    assert sum(whole.values()) == sum(p.numel() for p in model.parameters()) + stem
    half = {**ones, "fine": [0.5, *ones["fine"][1:]]}
    layer = sum(p.numel() for p in model.fine.blocks[0].layers[0].parameters())
    assert used_parameters(model, half) == {"coarse": whole["coarse"], "fine": whole["fine"] - layer / 2}


def test_the_papers_used_parameters_are_near():
    """Table 2 at the skip ratios of table 5: 0.7 M and 0.6 M of Concat-BC-100."""
    model = dsn_models.create("concat-bc-100")
    ran = {"coarse": [1 - 0.297] * 48, "fine": [1 - 0.153] * 48}
    used = used_parameters(model, ran)
    assert used["fine"] == pytest.approx(0.7e6, abs=0.06e6) and used["coarse"] == pytest.approx(0.6e6, abs=0.06e6)


def test_of_dual_skipping_by_hand():
    macs = gate_macs(dsn_models.create("dsn-navon"))
    inputs = [(size, c) for size, first in ((64, 12), (32, 30), (16, 48), (8, 66)) for c in range(first, first + 18, 6)]
    layers = [9 * 6 * c * size * size for size, c in inputs]
    assert macs.gates["coarse"].tolist() == macs.gates["fine"].tolist() == layers
    assert macs.fixed + 2 * sum(layers) == macs.dense + 2 * sum(c for _, c in inputs)


@pytest.mark.parametrize("name", ["dsn-navon", "concat-bc-100", "add-166", "lsn-navon"])
def test_of_dual_skipping_networks(name):
    model = make_small(name)
    macs = gate_macs(model)
    assert macs.dense == count_macs(model.dense_equivalent(), model.config)
    assert {key: len(m) for key, m in macs.gates.items()} == model.gate_counts
    assert all((m > 0).all() for m in macs.gates.values()) and macs.fixed > 0


def test_of_a_skipnet_is_what_computation_counts():
    model = make_small("skipnet-38-ff")
    macs, units = gate_macs(model), unit_macs(model)
    kept = torch.randint(0, 2, (5, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    torch.testing.assert_close(macs.executed({"units": kept}), computation(model, kept).macs)
    assert macs.dense == units.dense


@pytest.mark.parametrize("gated", ["last", "all"])
def test_of_a_gaternet(gated):
    model = make_small("gaternet-resnet-20", gated=gated)
    macs = gate_macs(model)
    point = model.gate_points[0].convolutions[-1]
    conv = model.backbone.get_submodule(point.conv)
    assert macs.gates["filters"][point.gates.start] == conv.weight[0].numel() * model.config.image_size**2
    gater = count_macs(model.gater, model.gater.features.config)
    opened = macs.executed({"filters": torch.ones(1, model.num_gates, dtype=torch.uint8)})
    assert opened.tolist() == [macs.dense + gater]


def test_gradients_are_the_costs():
    macs = gate_macs(dsn_models.create("dsn-navon"))
    gates = {name: torch.rand(3, 12, requires_grad=True) for name in ("coarse", "fine")}
    macs.executed(gates).sum().backward()
    torch.testing.assert_close(gates["fine"].grad, macs.gates["fine"].float().expand(3, 12))


def test_a_network_without_gates_is_refused():
    with pytest.raises(UserError, match="the model is a ResNet; expected a gated network"):
        gate_macs(make_small("resnet-164"))
