"""Widths and depths of the zoo's dual skipping networks."""

import pytest

import dsn_models


@pytest.mark.long
def test_widths_of_the_paper():
    widths = {
        name: [b.layers[0].norm1.num_features for b in dsn_models.create(name).coarse.blocks]
        for name in ("dsn-navon", "concat-40", "concat-bc-100", "add-166")
    }
    assert widths == {
        "dsn-navon": [12, 30, 48, 66],
        "concat-40": [24, 168, 312],
        "concat-bc-100": [24, 108, 150],
        "add-166": [64, 128, 256],
    }
    assert dsn_models.create("dsn-navon").coarse.channels == 84


@pytest.mark.parametrize("name", ["concat-40", "concat-bc-100", "add-166", "dsn-121"])
def test_a_guided_transition_keeps_its_width(name):
    model = dsn_models.create(name)
    coarse, fine = model.coarse.transitions[-1].conv, model.fine.transitions[-1].conv
    assert fine.out_channels == coarse.out_channels
    assert fine.in_channels == coarse.in_channels + model.coarse.channels


def test_add_166_has_166_layers():
    model = dsn_models.create("add-166")
    convolutions = [n for n, _ in model.coarse.named_parameters() if "conv" in n]
    assert 1 + len(convolutions) + 1 == 166
