"""The golden table of parameter counts."""

import pytest

import dsn_models
from dsn_models.gates import PooledGate


def count(module):
    return sum(p.numel() for p in module.parameters())


def gate_count(branch):
    return sum(count(m) for m in branch.modules() if isinstance(m, PooledGate))


@pytest.mark.parametrize(
    ("name", "classes", "expected", "gates"),
    [
        ("concat-40", 20, 1_063_868, 8_460),
        ("concat-40", 100, 1_100_428, 8_460),
        ("concat-bc-100", 20, 772_592, 8_880),
        ("concat-bc-100", 100, 800_032, 8_880),
        ("dsn-navon", 10, 39_214, 552),
    ],
)
def test_stem_and_one_unguided_branch_without_gates(name, classes, expected, gates):
    model = dsn_models.create(name, classes=(classes, classes), guide=False)
    for branch in (model.coarse, model.fine):
        assert gate_count(branch) == gates
        assert count(model.stem) + count(branch) - gates == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lenet", 61_706),
        ("densenet-40", 1_100_428),
        ("densenet-bc-100", 800_032),
        ("densenet-121", 7_978_856),
        ("resnet-18", 11_689_512),
        ("resnet-34", 21_797_672),
        ("resnet-164", 1_726_388),
    ],
)
def test_baselines(name, expected):
    assert count(dsn_models.create(name)) == expected


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
