"""Checkpoints: a round trip of every model, and every refusal."""

import dataclasses
import errno
import json
import os

import pytest
import torch
from safetensors.torch import save_file

import dsn_models
from dsn_models import UserError, checkpoints, zoo
from dsn_models.checkpoints import read_metadata
from tests.networks import SMALL, make_images, make_small


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
    for cut in (5, 200, len(data) // 2, len(data) - 1):
        saved.write_bytes(data[:cut])
        refuses(saved, "is cut short or is no safetensors file")
    saved.write_bytes(b"PK\3\4" + b"x" * 100)
    refuses(saved, "is cut short or is no safetensors file")
    save_file({"x": torch.ones(1)}, saved)
    refuses(saved, "safetensors file of another program")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no safetensors file but empty; copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is no safetensors file but a Git LFS pointer; fetch"),
        (b"\n <!DOCTYPE HTML><html>", "is no safetensors file but a web page; download the file itself"),
        (b"\x1f\x8b\x08", "is no safetensors file but a gzip archive; unpack it"),
    ],
)
def test_foreign_files_are_called_what_they_are(tmp_path, content, said):
    (tmp_path / "m.safetensors").write_bytes(content)
    refuses(tmp_path / "m.safetensors", said)


@pytest.mark.parametrize("old", [False, True])
def test_weights_of_pytorch_are_sent_to_convert(tmp_path, old):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=not old)
    refuses(path, f"is no safetensors file but PyTorch's; convert its weights first: dsn convert {path}")


def write(path, model, change=(), **header):
    """What ``save`` would write, changed: it refuses to."""
    fields = {"family": zoo.family_of(model), "config": json.dumps(dataclasses.asdict(model.config)), "metadata": "{}"}
    weights = {name: tensor for name, tensor in {**model.state_dict(), **dict(change)}.items() if tensor is not None}
    save_file(weights, path, {"format": checkpoints.FORMAT, **fields, **header})


BROKEN = [
    (
        {"fine.head.classifier.bias": torch.tensor([0.0] * 9 + [torch.nan])},
        "fine.head.classifier.bias' of .* holds NaN",
    ),
    ({"fine.head.classifier.bias": torch.tensor([0.0] * 9 + [-torch.inf])}, "classifier.bias' of .* holds infinity"),
    ({"stem.weight": None}, "tensor stem.weight is missing; expected the tensors of dsn-navon"),
    ({"extra": torch.ones(1)}, "tensor extra is unexpected"),
    ({"stem.weight": torch.ones(1)}, r"tensor stem.weight has shape \[1\]; expected \[12, 1, 3, 3\]"),
    ({"stem.weight": torch.ones(12, 1, 3, 3).half()}, "weights are float16, float32; expected all of one type"),
    ({"stem.weight": torch.ones(12, 1, 3, 3).long()}, "weights are float32, int64; expected all of one type"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN)
def test_load_and_save_refuse_the_same(tmp_path, monkeypatch, change, said):
    model, path = make_small("dsn-navon"), tmp_path / "m.safetensors"
    write(path, model)
    assert dsn_models.load(path).config == model.config
    write(path, model, change)
    refuses(path, said)
    changed = {name: tensor for name, tensor in {**model.state_dict(), **change}.items() if tensor is not None}
    monkeypatch.setattr(model, "state_dict", lambda: changed)
    for refused in (checkpoints.check, lambda model: dsn_models.save(model, tmp_path / "new.safetensors")):
        with pytest.raises(UserError, match=said):
            refused(model)
    assert not (tmp_path / "new.safetensors").exists()


def test_save_refuses_a_configuration_of_another_network_and_what_is_no_json(tmp_path):
    model = make_small("lenet")
    model.config = dataclasses.replace(model.config, classes=11)
    with pytest.raises(UserError, match="classifier|head|shape"):
        dsn_models.save(model, tmp_path / "m.safetensors")
    with pytest.raises(
        UserError, match="metadata cannot be kept as JSON .*set.*; expected text, numbers, lists and dicts"
    ):
        dsn_models.save(make_small("lenet"), tmp_path / "m.safetensors", seen={1, 2})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"config": "[1]"}, "has no readable configuration"),
        ({"config": "{"}, "has no readable configuration"),
        ({"family": "transformer"}, "model family is 'transformer'; expected one of dual_skipping"),
    ],
)
def test_headers_that_do_not_read(tmp_path, header, said):
    path = tmp_path / "m.safetensors"
    write(path, make_small("lenet"), **header)
    refuses(path, said)
    write(path, make_small("lenet"), metadata="nothing")
    with pytest.raises(UserError, match="has no readable metadata"):
        read_metadata(path)


def test_two_names_of_one_tensor_are_kept_as_two(tmp_path):
    tied = make_small("skipnet-38-rnn")
    tied.gates[1].weight = tied.gates[0].weight
    again = dsn_models.load(dsn_models.save(tied, tmp_path / "m.safetensors"))
    assert torch.equal(again.gates[1].weight, tied.gates[0].weight)


@pytest.mark.parametrize(
    ("name", "classes", "fresh"),
    [
        ("resnet-20", 7, ["head.2.weight", "head.2.bias"]),
        ("dsn-navon", (10, 4), ["fine.head.classifier.weight", "fine.head.classifier.bias"]),
        ("gaternet-resnet-20", 3, ["backbone.head.2.weight", "backbone.head.2.bias"]),
        ("skipnet-38-rnn", 10, []),
    ],
)
def test_another_class_count_has_a_fresh_classifier_and_all_else(name, classes, fresh):
    model = make_small(name) if name in SMALL else dsn_models.create(name)
    state = torch.get_rng_state()
    other, changed = checkpoints.with_classes(model, classes)
    assert changed == fresh and other.config == dataclasses.replace(model.config, classes=classes)
    assert torch.equal(torch.get_rng_state(), state)
    before, again = model.state_dict(), checkpoints.with_classes(model, classes)[0].state_dict()
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, again[key]) and (key in fresh or torch.equal(tensor, before[key]))
    with pytest.raises(UserError, match="of another number of tasks"):
        checkpoints.with_classes(model, 5 if isinstance(classes, tuple) else (5, 5))


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
