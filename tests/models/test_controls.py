"""Controls of gates on networks whose right answer is known, and the statistics that they rest on."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import dsn_models
from dsn_models import UserError, controls
from dsn_models.computation import GateMacs
from dsn_models.data import CoarseFineDataset, navon
from dsn_models.data.base import Clusters
from dsn_models.statistics import mutual_information, rank_correlation
from tests.networks import make_small

CLASSES = 4


class OneHot(CoarseFineDataset):
    """Images whose pixels are their fine label, one-hot, and a noise pixel; the coarse label is the label's half."""

    coarse_classes, fine_classes = 2, CLASSES

    def __init__(self, images, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.fine = torch.randint(CLASSES, (images,), generator=generator)
        self.noise = torch.rand(images, generator=generator)

    def __len__(self):
        return len(self.fine)

    def batch(self, indices):
        pixels = torch.cat([nn.functional.one_hot(self.fine[indices], CLASSES), self.noise[indices, None]], 1)
        return pixels[:, :, None, None], self.fine[indices] // 2, self.fine[indices]


class Gated(nn.Module):
    """One gate for each class: a shut gate hides its class's pixel, and costs nothing. ``decide``: pixels to gates."""

    config = SimpleNamespace()
    gate_counts = {"units": CLASSES}

    def __init__(self, decide):
        super().__init__()
        self.decide = decide

    def forward(self, images, forced_gates=None):
        pixels, noise = images[:, :CLASSES, 0, 0], images[:, CLASSES, 0, 0]
        gates = self.decide(pixels, noise).to(torch.uint8) if forced_gates is None else forced_gates["units"]
        self.last_gates = {"units": gates}
        return 8.0 * pixels * gates + torch.arange(CLASSES) * 1e-3


@pytest.fixture
def costs(monkeypatch):
    macs = GateMacs(10.0, {"units": torch.full((CLASSES,), 10.0, dtype=torch.float64)}, 50.0)
    monkeypatch.setattr(controls, "gate_macs", lambda model: macs)


def judge(decide, images=2000, **options):
    return controls.controls(Gated(decide), OneHot(images), task="fine", **options)


def test_gates_that_read_the_class(costs):
    """Own gates open the class's pixel alone: all is right. Another's open the right one for a quarter of the images,
    and class 3, which wins where all pixels are hidden, needs none."""
    found = judge(lambda pixels, noise: pixels > 0)
    table = found["under"]
    assert table["own"]["fine"]["accuracy"] == 1 and table["open"]["fine"]["accuracy"] == 1
    assert table["own"]["macs"] == pytest.approx(0.4) and table["open"]["macs"] == pytest.approx(1.0)
    assert table["another"]["macs"] == pytest.approx(0.4)
    assert table["another"]["fine"]["accuracy"] == pytest.approx(1 / 4 + 3 / 16, abs=0.05)
    another = table["another"]["fine"]
    assert another["gain"] == pytest.approx(1 - another["accuracy"]) and 0 < another["gain_low"] < another["gain"]
    # One gate fits: that of any class but 3, which is right without its gate.
    assert sum(found["static_pattern"]["units"]) == 1 and found["static_pattern"]["units"][3] == 0
    assert table["static"]["fine"]["accuracy"] == pytest.approx(0.5, abs=0.05)
    assert table["static"]["macs"] <= table["own"]["macs"] + 1e-9
    information = found["gates"]["units"]["fine"]["class"]
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert information == pytest.approx([entropy] * CLASSES, abs=0.05)
    assert found["difficulty"]["fine"] == {"correlation": None, "low": None, "high": None}
    assert found["images"] == 1500 and found["search_images"] == 500


def test_gates_that_do_not_look(costs):
    """Random gates of rate a half: another image's are as good as its own, and tell nothing of the class."""
    generator = torch.Generator().manual_seed(3)
    found = judge(lambda pixels, noise: torch.rand(pixels.shape, generator=generator) < 0.5)
    table = found["under"]
    for control in ("another", "random"):
        assert table[control]["fine"]["gain_low"] < 0 < table[control]["fine"]["gain_high"]
        assert table[control]["macs"] == pytest.approx(table["own"]["macs"], abs=0.02)
    assert max(found["gates"]["units"]["fine"]["class"]) < 0.005
    assert found["gates"]["units"]["open"] == pytest.approx([0.5] * CLASSES, abs=0.05)


def test_gates_that_are_the_same_for_all(costs):
    found = judge(lambda pixels, noise: torch.tensor([1, 1, 0, 0]).expand(len(pixels), -1))
    table = found["under"]
    for control in ("another", "random", "static"):
        assert table[control]["fine"]["gain"] <= 0
    assert table["another"]["fine"]["gain"] == table["random"]["fine"]["gain"] == 0
    assert table["static"]["fine"]["accuracy"] >= table["own"]["fine"]["accuracy"]
    assert found["gates"]["units"]["fine"]["class"] == [0.0] * CLASSES


def test_gates_that_open_for_what_is_hard(costs):
    """Class 0 is never right but opens all gates, so that images of much cost are those of large loss."""
    found = judge(lambda pixels, noise: (pixels[:, :1] == 0) ^ torch.tensor([[False, True, True, True]]))
    assert found["difficulty"]["fine"]["low"] > 0.5


def test_the_draw_is_the_seeds(costs):
    def decide(pixels, noise):
        return noise[:, None] < torch.tensor([0.2, 0.4, 0.6, 0.8])

    assert judge(decide, seed=1) == judge(decide, seed=1)
    assert judge(decide, seed=1) != judge(decide, seed=2)


@pytest.mark.parametrize("name", ["dsn-navon", "skipnet-38-rnn", "gaternet-resnet-20"])
def test_every_family(name):
    model = make_small(name, **({} if name == "dsn-navon" else {"in_channels": 1, "image_size": 16}))
    data = navon.from_sklearn(False, 40, canvas=16, glyph=4)
    found = controls.controls(model, data, task="both" if name == "dsn-navon" else "fine", search_steps=3)
    assert list(found["under"]) == list(controls.CONTROLS)
    assert found["images"] == 30 and found["search_images"] == 10
    for key, count in model.gate_counts.items():
        assert len(found["gates"][key]["open"]) == len(found["static_pattern"][key]) == count
    assert found["under"]["static"]["macs"] <= found["under"]["open"]["macs"]


class TwoTasks(nn.Module):
    """A coarse and a fine head on two residual units: a network of a user's own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.units = nn.Sequential(*(Unit() for _ in range(2)))
        self.coarse, self.fine = nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x):
        x = self.units(self.stem(x)).mean((2, 3))
        return self.coarse(x), self.fine(x)


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x):
        return torch.relu(x + self.body(x))


@pytest.mark.parametrize("task", ["both", "fine"])
def test_a_users_network(task):
    torch.manual_seed(0)
    network = TwoTasks()
    if task == "fine":
        network = nn.Sequential(network.stem, *network.units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), network.fine)
    data = navon.from_sklearn(False, 80, canvas=16, glyph=4)
    images = data.batch(torch.arange(80))[0]
    gated, _ = dsn_models.gate(network.eval(), images)
    with torch.no_grad():  # each gate is open for about half of the images
        for unit in gated.gated():
            unit.gate.weight.normal_(0, 4)
        for i, unit in enumerate(gated.gated()):
            gated(images)
            unit.gate.bias -= gated.last_scores["units"][:, i].logit().median()
    found = controls.controls(gated.eval(), data, task=task, search_steps=3)
    tasks = ("coarse", "fine") if task == "both" else ("fine",)
    assert set(found["difficulty"]) == set(tasks) and set(found["gates"]) == {"units"}
    assert found["under"]["open"]["macs"] > found["under"]["own"]["macs"] >= found["under"]["static"]["macs"]
    tables, lines = controls.told(found)
    words = " ".join([*tables[0].columns, *tables[1].columns, *lines])
    assert ("fine" in words) == (task == "both")
    assert len(tables[0].rows[0]) == 2 + 2 * len(tasks) and len(tables[1].rows) == len(lines) == len(tasks)


def test_what_has_no_gates_or_no_images_is_refused(costs):
    with pytest.raises(UserError, match="controls compare gates; the model is a ResNet, which has none"):
        controls.controls(make_small("resnet-164"), OneHot(20), task="fine")
    with pytest.raises(UserError, match="the data set has 7 images; controls need 8 or more"):
        judge(lambda pixels, noise: pixels > 0, images=7)


def test_every_image_gets_anothers_gates():
    gates = {"a": torch.arange(50).view(50, 1), "b": torch.arange(50).view(50, 1) + 100}
    given = controls._shuffled(gates, torch.Generator().manual_seed(0))
    assert not (given["a"] == gates["a"]).any() and torch.equal(given["a"] + 100, given["b"])
    assert torch.equal(given["a"].sort(0).values, gates["a"])


def test_rank_correlation():
    x = np.arange(100.0)
    assert rank_correlation(x, x**3).correlation == pytest.approx(1)
    assert rank_correlation(np.zeros(9), np.arange(9.0)) == (None, None, None)
    drawn = np.random.default_rng(0).normal(size=(2, 500))
    found = rank_correlation(*drawn)
    assert found.low < 0 < found.high and found.high - found.low == pytest.approx(
        2 * 1.96 * math.sqrt(1.06 / 497), abs=0.01
    )
    few = rank_correlation(*drawn, Clusters("groups", torch.arange(500)[:, None] // 50))
    assert few.high - few.low > 3 * (found.high - found.low)


def test_mutual_information():
    classes = np.arange(1000) % 4
    assert mutual_information((classes == 0).astype(int), classes) == pytest.approx(0.811, abs=0.005)
    assert mutual_information(np.ones(1000, int), classes) == 0
    assert mutual_information(np.random.default_rng(0).integers(0, 2, 1000), classes) < 0.01
