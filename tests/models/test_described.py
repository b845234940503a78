"""What a network shows in a notebook."""

import html
import re

import pytest
import torch

import dsn_kernels
from dsn_models.described import Described, card
from dsn_models.zoo import FAMILIES
from tests.networks import make_images, make_small


def cells(text):
    """Rows of a table, as text."""
    rows = re.findall("<tr>(.*?)</tr>", text)
    return [[html.unescape(cell) for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


@pytest.mark.parametrize(
    "name", ["concat-bc-100", "lsn-navon", "skipnet-38-rnn", "gaternet-resnet-20", "gunn-15", "lenet"]
)
def test_reference_and_accelerated_agree(name):
    model = make_small(name)
    fast = dsn_kernels.accelerate(model, backend="cpu")
    for network in (model, fast):
        with torch.no_grad():
            network(make_images(model, 3))
    (reference, title), (accelerated, accelerated_title) = (
        (cells(network._repr_html_()), re.search("<caption>(.*?)</caption>", network._repr_html_())[1])
        for network in (model, fast)
    )
    assert title == model.config.name and accelerated_title == f"{title}, accelerated"
    assert accelerated[: len(reference)] == reference, "the same gates, thresholds, shares, parameters and dense MACs"
    assert [row[0] for row in accelerated[len(reference) :]] == ["MACs per image, last call"]
    assert ["parameters", f"{sum(p.numel() for p in model.parameters()):,}"] in reference
    assert len(reference) == 2 + len(getattr(model, "gate_counts", {})) + bool(getattr(model, "gate_counts", {}))


def test_before_the_first_call_nothing_was_open():
    model = make_small("skipnet-38-rnn")
    del model.last_gates
    assert cells(model._repr_html_())[1] == ["units", "2", "0.5", "-"]


def test_thresholds_by_layer_are_a_range():
    model = make_small("skipnet-38-rnn", layer_thresholds=(0.25, 0.75))
    assert cells(model._repr_html_())[1][2] == "0.25 to 0.75"


def test_while_it_trains():
    model = make_small("skipnet-38-rnn").train()
    model(make_images(model, 2)).sum().backward()
    assert "units" in model._repr_html_()
    assert model.training


def test_names_are_escaped():
    assert "<caption>a &lt; b</caption>" in card("a < b", {}, [], {}, 1, 1)


def test_every_family_has_it():
    assert all(issubclass(family.module, Described) for family in FAMILIES.values())
