"""Gate statistics of every gated family, and their plots."""

from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import dsn_models
from dsn_models import UserError, plots, statistics
from dsn_models.data.base import CoarseFineDataset
from tests.networks import SMALL, make_small

GATES = np.array(
    [
        [1, 0, 1, 0, 1],
        [1, 0, 0, 0, 1],
        [1, 0, 1, 1, 1],
        [1, 0, 1, 0, 1],
    ],
    np.uint8,
)

FAMILIES = {
    "gaternet-resnet-20": SMALL["gaternet-resnet-20"],
    "dsn-navon": SMALL["dsn-navon"],
    "lsn-navon": SMALL["dsn-navon"],
    "skipnet-38-rnn": {"stage_units": (1, 1, 1), "image_size": 16},
}


class Noise(CoarseFineDataset):
    coarse_classes, fine_classes = 2, 10

    def __init__(self, model, count):
        config, generator = model.config, torch.Generator().manual_seed(0)
        shape = (config.in_channels, config.image_size, config.image_size)
        self.images = torch.randn(count, *shape, generator=generator)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], indices % 2, indices % 10


def test_kinds_per_unit_by_hand():
    kinds = statistics.gate_kinds(GATES, [2, 2, 1])
    np.testing.assert_array_equal(kinds.always_on, [0.5, 0, 1])
    np.testing.assert_array_equal(kinds.always_off, [0.5, 0, 0])
    np.testing.assert_array_equal(kinds.input_dependent, [0, 1, 0])
    np.testing.assert_array_equal(statistics.gate_kinds(GATES).input_dependent, [0, 0, 1, 1, 0])


def test_counts_by_hand():
    np.testing.assert_array_equal(statistics.samples_on(GATES), [3, 1])
    np.testing.assert_array_equal(statistics.gates_on(GATES), [3, 2, 4, 3])
    np.testing.assert_array_equal(statistics.gates_on(torch.from_numpy(GATES)), [3, 2, 4, 3])


@pytest.mark.long
def test_embedding_separates_two_gate_patterns():
    generator = np.random.default_rng(0)
    probabilities = np.repeat([[0.05, 0.95], [0.95, 0.05]], 40, 0).repeat(20, 1)
    gates = (generator.random(probabilities.shape) < probabilities).astype(np.uint8)
    points = statistics.embed_gates(gates, seed=1)
    assert points.shape == (80, 2)
    centres = np.stack([points[:40].mean(0), points[40:].mean(0)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest, np.repeat([0, 1], 40))
    np.testing.assert_array_equal(points, statistics.embed_gates(gates, seed=1))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_gated_family_can_be_recorded(name):
    model = dsn_models.create(name, **FAMILIES[name]).eval()
    dataset = Noise(model, 7)
    record = statistics.record_gates(model, dataset, batch=3)
    with torch.no_grad():
        model(dataset.images)
    assert set(record.gates) == set(model.last_gates) == set(model.gate_counts)
    for key, gates in record.gates.items():
        np.testing.assert_array_equal(gates, model.last_gates[key].numpy())
        np.testing.assert_allclose(record.scores[key], model.last_scores[key].numpy(), rtol=1e-4, atol=1e-5)
        kinds = statistics.gate_kinds(gates)
        np.testing.assert_array_equal(kinds.always_on + kinds.always_off + kinds.input_dependent, 1)
    np.testing.assert_array_equal(record.labels["fine"], np.arange(7))


def test_a_gaternet_knows_its_units():
    model = make_small("gaternet-resnet-20")
    gates = statistics.record_gates(model, Noise(model, 6)).gates["filters"]
    kinds = statistics.gate_kinds(gates, list(model.unit_sizes.values()))
    assert len(kinds.always_on) == 3
    off = [(gates[:, p.gates] == 0).all(0).mean() for p in model.gate_points]
    np.testing.assert_allclose(kinds.always_off, off)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.gate_kinds(GATES, [2, 2]), "unit_sizes add up to 4; expected .* add up to 5"),
        (lambda: statistics.gates_on(GATES * 2), "other values than 0 and 1"),
        (lambda: statistics.samples_on(GATES[0]), r"gates have shape \[5\]; expected \[samples, gates\]"),
        (lambda: statistics.embed_gates(GATES[:1]), "1 samples; expected two or more"),
        (lambda: statistics.record_gates(dsn_models.create("lenet"), None), "model is a LeNet; expected a gated"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.plot_gate_kinds(statistics.gate_kinds(GATES, [2, 2, 1])),
        lambda: plots.plot_samples_on(statistics.samples_on(GATES), len(GATES)),
        lambda: plots.plot_gates_on(statistics.gates_on(GATES)),
        lambda: plots.plot_embedding(GATES[:, :2], np.arange(4), ["a", "b", "c", "d"]),
    ],
)
def test_plots_are_written(figure, tmp_path):
    figure().savefig(tmp_path / "figure.svg")
    assert ElementTree.parse(tmp_path / "figure.svg").getroot().tag.endswith("svg")


def test_bars_of_gate_kinds_stack_to_a_hundred():
    axes = plots.plot_gate_kinds(statistics.gate_kinds(GATES, [2, 2, 1])).axes[0]
    heights = np.array([bar.get_height() for bar in axes.patches]).reshape(3, 3)
    np.testing.assert_allclose(heights.sum(0), 100)
    np.testing.assert_allclose(heights[0], [50, 0, 100])
