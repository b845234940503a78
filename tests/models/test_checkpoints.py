"""Checkpoints: a round trip of every model, and every refusal."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file
from small_models import SMALL, make_images, make_small

import dsn_models
from dsn_models import UserError, zoo
from dsn_models.checkpoints import read_metadata


@pytest.mark.parametrize("name", list(SMALL))
@torch.no_grad()
def test_round_trip(name, tmp_path):
    model = make_small(name)
    path = dsn_models.save(model, tmp_path / "deep" / "m.safetensors", trained_on="noise")
    again = dsn_models.load(path)
    assert again.config == model.config
    assert not again.training
    images = make_images(model, 2)
    torch.testing.assert_close(again(images), model(images), rtol=0, atol=0)
    assert read_metadata(path) == {"trained_on": "noise"}
    assert [p.name for p in path.parent.iterdir()] == ["m.safetensors"]


def test_every_family_has_a_small_configuration():
    assert {zoo.family_of(dsn_models.create(name, **options)) for name, options in SMALL.items()} == set(zoo.FAMILIES)


@pytest.fixture
def saved(tmp_path):
    return dsn_models.save(make_small("dsn-navon"), tmp_path / "m.safetensors")


def refuses(path, said):
    with pytest.raises(UserError, match=said) as caught:
        dsn_models.load(path)
    assert "\n" not in str(caught.value)


def test_missing_truncated_and_foreign_files(saved, tmp_path):
    refuses(tmp_path / "none.safetensors", "no checkpoint at")
    data = saved.read_bytes()
    for cut in (0, 5, 200, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:cut])
        refuses(saved, "is cut short or is no safetensors file")
    saved.write_bytes(b"PK\3\4" + b"x" * 100)
    refuses(saved, "is cut short or is no safetensors file")
    save_file({"x": torch.ones(1)}, saved)
    refuses(saved, "safetensors file of another program")


def test_nan_and_tensors_that_do_not_fit(tmp_path, monkeypatch):
    model, path = make_small("dsn-navon"), tmp_path / "m.safetensors"
    model.fine.head.classifier.weight.data[3, 1] = float("nan")
    dsn_models.save(model, path)
    refuses(path, "weights hold NaN: tensor fine.head.classifier.weight")
    model = make_small("dsn-navon")
    weights = model.state_dict()
    for change, said in [
        ({"stem.weight": None}, "tensor stem.weight is missing"),
        ({"extra": torch.ones(1)}, "tensor extra is unexpected"),
        ({"stem.weight": torch.ones(1)}, r"tensor stem.weight has shape \[1\]; expected \[12, 1, 3, 3\]"),
    ]:
        changed = {k: v for k, v in {**weights, **change}.items() if v is not None}
        with monkeypatch.context() as patch:
            patch.setattr(model, "state_dict", lambda changed=changed: changed)
            dsn_models.save(model, path)
        refuses(path, said)


def test_full_disk_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*: No space left on device; free space"):
        dsn_models.save(make_small("lenet"), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_only_our_models_are_saved(tmp_path):
    with pytest.raises(UserError, match="model is a Linear; expected one made by"):
        dsn_models.save(torch.nn.Linear(1, 1), tmp_path / "m.safetensors")
