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
    assert "61,706" in out and "MNIST" in out and "0.4 M" in out
    assert "concat-40" not in out


def test_every_family_has_models_and_every_name_one_family():
    assert all(family.zoo for family in zoo.FAMILIES.values())
    names = [config.name for family in zoo.FAMILIES.values() for config, _ in family.zoo]
    assert len(names) == len(set(names)) and names == zoo.names()


def test_unknown_names():
    with pytest.raises(UserError, match="unknown model 'gunn-16'; near it: .*gunn-15"):
        zoo.create("gunn-16")
    with pytest.raises(UserError, match="unknown model 'qqq'; expected one of dsn-navon, "):
        zoo.create("qqq")
    with pytest.raises(UserError, match=r"classes is \(2, 3\); gunn-15 takes one number"):
        zoo.create("gunn-15", classes=(2, 3))
    with pytest.raises(UserError, match=r"classes is 7; lsn-navon takes \(coarse, fine\)"):
        zoo.create("lsn-navon", classes=7)
