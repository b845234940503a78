"""Confidence intervals: the textbook's for independent images; by source for images that share theirs."""

import math

import pytest
import torch

from dsn_kernels.measure.records import Record, read
from dsn_kernels.tuning.points import Point, summarise
from dsn_models.data import open_dataset
from dsn_models.data.base import Clusters
from dsn_models.intervals import design_effect, fraction_interval, mean_interval, share_interval


def test_of_independent_images():
    third = fraction_interval(10, 30)  # Wilson, from the textbook's formula
    assert third["mean"] == pytest.approx(1 / 3)
    assert (third["low"], third["high"]) == (pytest.approx(0.1923, abs=1e-4), pytest.approx(0.5122, abs=1e-4))
    assert fraction_interval(0, 10)["low"] == 0 and fraction_interval(0, 10)["high"] == pytest.approx(0.2775, abs=1e-4)
    assert share_interval(torch.arange(30) < 10) == third
    mean = mean_interval(torch.tensor([1.0, 3.0]))
    assert mean["mean"] == 2 and mean["high"] - 2 == pytest.approx(1.959964)
    assert mean_interval(torch.tensor([5.0])) == {"mean": 5.0, "low": 5.0, "high": 5.0}


def made_of(digits, images, seed, spread):
    """Errors [images] of images made of two of ``digits`` digits, each with a difficulty of its own, and the digits."""
    generator = torch.Generator().manual_seed(seed)
    big, small = spread * torch.randn(2, digits, generator=generator) - torch.tensor([[1.5], [0.0]])
    pairs = torch.randint(0, digits, (images, 2), generator=generator)
    chance = torch.sigmoid(big[pairs[:, 1]] + 0.3 * small[pairs[:, 0]])
    return torch.rand(images, generator=generator) < chance, Clusters("digits", pairs)


@pytest.mark.long
@pytest.mark.parametrize(("digits", "images", "spread"), [(60, 1500, 1.5), (60, 1500, 0.0), (300, 300, 1.5)])
def test_the_truth_is_covered_as_often_as_promised(digits, images, spread):
    """The truth is the mean over all digits there could be; taken for independent, images cover it too seldom."""
    truth = made_of(100_000, 200_000, 0, spread)[0].double().mean().item()
    draws = [made_of(digits, images, seed, spread) for seed in range(1, 301)]

    def covered(intervals):
        return sum(one["low"] <= truth <= one["high"] for one in intervals) / len(draws)

    assert 0.92 <= covered([share_interval(hits, clusters) for hits, clusters in draws]) <= 0.98
    assert 0.91 <= covered([mean_interval(hits, clusters) for hits, clusters in draws]) <= 0.98
    effect = sum(design_effect(hits.double(), clusters) for hits, clusters in draws) / len(draws)
    variance = torch.tensor([hits.double().mean() for hits, _ in draws]).var().item()
    if not spread:
        assert effect < 1.2
        return
    assert effect == pytest.approx(variance / (truth * (1 - truth) / images), rel=0.2)
    if images > digits:
        assert effect > 4 and covered([share_interval(hits) for hits, _ in draws]) < 0.75


def pigeonhole(values, clusters, draws=300):
    """The variance of the mean when sources are drawn anew, images weighed by how often theirs were. Owen (2007)."""
    count = int(clusters.members.max()) + 1
    generator = torch.Generator().manual_seed(0)
    means = []
    for _ in range(draws):
        times = torch.randint(0, count, (count,), generator=generator).bincount(minlength=count).double()
        weights = times[clusters.members].prod(1)
        means.append((weights * values).sum() / weights.sum())
    return torch.stack(means).var().item()


def test_beside_the_pigeonhole_bootstrap():
    """Where digits decide, both say the same; the bootstrap counts the chance of single images three times."""
    hits, clusters = made_of(60, 3000, 3, 1.5)
    values = hits.double()
    independent = values.var(correction=0).item() / len(values)
    ours = design_effect(values, clusters) * independent
    assert ours == pytest.approx(pigeonhole(values, clusters) - 2 * independent, rel=0.25)
    assert ours < pigeonhole(values, clusters)


def test_by_hand():
    pairs = torch.tensor([[0, 1], [1, 0], [0, 0], [1, 1]])
    values = torch.tensor([2.0, 2.0, 0.0, 0.0])
    # S_0 = S_1 = 1; the pair {0, 1} has T = 2, counted twice: V = 2 / 1 (1 + 1) - 4 = 0, less than independent ones' 4.
    assert design_effect(values, Clusters("digits", pairs)) == 1
    # One digit in all images of a value: S = (2, -2), V = 2 (4 + 4) beside 4.
    values, pairs = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1]])
    assert design_effect(values, Clusters("digits", pairs)) == pytest.approx(4)
    half = mean_interval(values, Clusters("digits", pairs))["high"]
    assert half == pytest.approx(2 * mean_interval(values)["high"])
    assert design_effect(torch.ones(4), Clusters("digits", pairs)) == 1


def test_where_all_images_are_right_there_are_as_many_trials_as_digits():
    clusters = Clusters("digits", torch.arange(400).reshape(200, 2) % 40)
    assert share_interval(torch.zeros(200, dtype=torch.bool), clusters) == fraction_interval(0, 40)
    assert share_interval(torch.ones(200, dtype=torch.bool), clusters) == fraction_interval(40, 40)
    few = Clusters("digits", torch.arange(20).reshape(10, 2))
    assert share_interval(torch.zeros(10, dtype=torch.bool), few) == fraction_interval(0, 10)


@pytest.mark.long
def test_navon_images_say_which_digits_they_are_made_of():
    dataset = open_dataset("navon-sklearn", None, False, 60, canvas=16, glyph=4)
    some = read(dataset, "both", 30)
    assert some.clusters.what == "digits" and torch.equal(some.clusters.members, dataset.pairs[::2])
    assert torch.equal(some.part(torch.tensor([3])).clusters.members, dataset.pairs[6:7])
    distorted = open_dataset("navon-sklearn", None, True, 60, canvas=16, glyph=4, distortions=2)
    assert int(distorted.clusters.members.max()) < 1438 <= int(distorted.pairs.max())
    assert torch.equal(distorted.labels[distorted.pairs], distorted.labels[distorted.clusters.members])


def test_every_figure_of_a_point_goes_by_its_sources():
    hits, clusters = made_of(60, 1500, 1, 1.5)
    labels = torch.zeros(1500, dtype=torch.int64)
    gates = {"fine": (~hits)[:, None].to(torch.uint8)}
    kept = Record({"fine": hits.double()}, {"fine": hits.long()}, {"fine": labels}, gates, {}, 100.0 * hits)

    def widths(record):
        found = summarise(Point(None, record), 100)
        return [one["high"] - one["low"] for one in (found["error"]["fine"], found["skipped"]["fine"], found["macs"])]

    shared = Record(*vars(kept).values())
    object.__setattr__(shared, "clusters", clusters)
    effect = math.sqrt(design_effect(hits.double(), clusters))
    assert [wide / narrow for wide, narrow in zip(widths(shared), widths(kept), strict=True)] == pytest.approx(
        [effect] * 3, rel=0.02
    )
