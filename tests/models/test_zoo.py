"""Names of the zoo: what is told of a model, and answers to unknown names."""

import pytest

from dsn_models import UserError, zoo


def test_a_summary_counts_without_weights():
    summary = zoo.summarise("dsn-navon")
    assert summary[:3] == ("dsn-navon", "DSN, CVPR 2018", "sb-MNIST")
    assert summary.parameters == sum(p.numel() for p in zoo.create("dsn-navon").parameters())
    plain = zoo.summarise("lenet").macs
    assert plain == 25 * 6 * 28**2 + 25 * 6 * 16 * 10**2 + 400 * 120 + 120 * 84 + 84 * 10


def test_list_prints_what_it_is_asked_for(capsys):
    zoo.list("lenet")
    out = capsys.readouterr().out
    for column in ("name", "paper", "data set", "parameters", "MACs"):
        assert column in out
    assert "lenet" in out and "LeNet-5, 1998" in out and "61,706" in out and "MNIST" in out and "0.4 M" in out
    assert "concat-40" not in out


def test_every_family_has_models_and_every_name_one_family():
    assert all(family.zoo for family in zoo.FAMILIES.values())
    names = [config.name for family in zoo.FAMILIES.values() for config, _ in family.zoo]
    assert len(names) == len(set(names)) and names == zoo.names()


def test_the_papers_models_are_there():
    names = {
        *(f"skipnet-{depth}-{gate}" for depth in (38, 74, 110, 152) for gate in ("rnn", "ff")),
        *(f"skipnet-{depth}-rnn-imagenet" for depth in (18, 34, 50, 101, 152)),
        *(f"gaternet-resnet-{depth}" for depth in (20, 56, 164, 34, 101, 152)),
        *(f"gaternet-{backbone}" for backbone in ("densenet-100-12", "densenet-250-24", "densenet-190-40")),
        *(f"gaternet-{backbone}" for backbone in ("shake-shake-64d", "shake-shake-96d", "inception-v4")),
        *(f"{order}-{size}" for order in ("gunn", "sunn") for size in ("15", "24", "18", "18-wide")),
        *("lsn-navon", "lsn-concat-bc-100"),
    }
    assert names <= set(zoo.names())


def test_unknown_names():
    with pytest.raises(UserError, match="unknown model 'gunn-16'; near it: .*gunn-15"):
        zoo.create("gunn-16")
    with pytest.raises(UserError, match="unknown model 'qqq'; expected one of dsn-navon, "):
        zoo.create("qqq")
    with pytest.raises(UserError, match=r"classes is \(2, 3\); gunn-15 takes one number"):
        zoo.create("gunn-15", classes=(2, 3))
    with pytest.raises(UserError, match=r"classes is 7; lsn-navon takes \(coarse, fine\)"):
        zoo.create("lsn-navon", classes=7)
