"""The golden table: parameters of the zoo's models as the papers give them, exactly."""

import pytest
import torch

import dsn_models
from dsn_models import zoo

# name, options, parameters. Papers that give millions to two digits are held to those digits by an interval.
PARAMETERS = [
    ("gunn-15", {}, 1_585_746),
    ("gunn-15", {"classes": 100}, 1_618_236),
    ("sunn-15", {}, 1_585_746),
    ("gunn-24", {}, 29_534_106),
    ("gunn-24", {"classes": 100}, 29_631_396),
    ("gunn-18", {}, 28_909_736),
    ("sunn-18", {}, 28_909_736),
    ("gunn-18-wide", {}, 45_624_936),
]

# name, 10^9 multiply-accumulates of one image, to the digits that are known
MACS = [("gunn-15", 0.556, 3), ("sunn-15", 0.556, 3), ("gunn-18", 7.75, 2)]


@pytest.mark.parametrize(("name", "options", "expected"), PARAMETERS)
def test_parameters(name, options, expected):
    with torch.device("meta"):
        model = dsn_models.create(name, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(("name", "expected", "digits"), MACS)
def test_macs(name, expected, digits):
    assert round(zoo.summarise(name).macs / 1e9, digits) == expected
