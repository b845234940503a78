"""What each gate costs in milliseconds, of every family, and that a training reads it."""

import json

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_kernels.measure import gate_costs as module
from dsn_kernels.measure.gate_costs import gate_costs
from dsn_models import UserError
from dsn_models.computation import read_gate_costs
from tests.networks import make_images, make_small


@pytest.mark.parametrize("name", ["dsn-navon", "skipnet-38-rnn", "gaternet-resnet-20"])
def test_every_gate_has_a_cost_and_all_of_it_is_the_network(name, tmp_path):
    model = make_small(name)
    found = gate_costs(model, dsn_kernels.accelerate(model), make_images(model, 4), runs=2)
    assert {key: len(values) for key, values in found["gates"].items()} == model.gate_counts
    every = [value for values in found["gates"].values() for value in values]
    assert min(every) >= 0 and found["fixed"] >= 0
    # What filters cost is a difference of two times, which chance may make less than nothing: it is then 0.
    assert max(every) > 0 or name.startswith("gaternet")
    assert found["dense"] == pytest.approx(found["fixed"] + sum(every))
    (tmp_path / "costs.json").write_text(json.dumps(found))
    costs = read_gate_costs(tmp_path / "costs.json", model.gate_counts)
    ones = {key: torch.ones(1, count) for key, count in model.gate_counts.items()}
    assert costs.executed(ones).item() == pytest.approx(costs.dense) == pytest.approx(found["dense"])


def test_a_users_network():
    network = dsn_models.create("resnet-20", stage_units=(2, 1, 1), image_size=16).eval()
    images = make_images(network, 2)
    gated, _ = dsn_models.gate(network, images)
    found = gate_costs(gated, dsn_kernels.accelerate(gated.eval(), example=images), images, runs=2)
    assert list(found["gates"]) == ["units"] and min(found["gates"]["units"]) > 0


def test_steps_go_to_the_gates_that_decide_on_them(monkeypatch):
    """A timeline by hand: a stem, two layers of each branch, the second of the fine one in two steps."""
    model = make_small("dsn-navon")
    timeline = type("Timeline", (), {})()
    timeline.branches = ["", "coarse", "coarse", "fine", "fine", "fine"]
    timeline.gates = [-1, 0, 1, 0, 1, 1]
    timeline.ms = torch.tensor([[4.0, 1.0, 2.0, 3.0, 5.0, 6.0], [6.0, 1.0, 2.0, 3.0, 5.0, 6.0]])
    monkeypatch.setattr(module, "timeline", lambda *_, **__: timeline)
    found = gate_costs(model, None, make_images(model, 2))
    assert found["gates"]["coarse"][:2] == [1, 2] and found["gates"]["fine"][:2] == [3, 11]
    assert (found["fixed"], found["dense"]) == (5, 22)


def test_filters_share_what_their_unit_saves(monkeypatch):
    """A timeline by hand, in which each open filter takes two milliseconds and all else ten."""
    model = make_small("gaternet-resnet-20")

    def timed(fast, images, gates, runs):
        (taken,) = gates.values()
        return type("Timeline", (), {"ms": 10 + 2 * taken.sum(1, keepdim=True).float()})

    monkeypatch.setattr(module, "timeline", timed)
    found = gate_costs(model, None, make_images(model, 2))
    ((name, count),) = model.gate_counts.items()
    assert found["gates"][name] == pytest.approx([2.0] * count) and found["fixed"] == pytest.approx(10)


def test_what_has_no_gates_is_refused():
    with pytest.raises(UserError, match="costs are those of gates; the model is a ResNet, which has none"):
        gate_costs(dsn_models.create("resnet-20"), None, torch.rand(1, 3, 32, 32))
