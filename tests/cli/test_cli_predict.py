"""What a checkpoint knows of its images and classes, and ``dsn predict``, which uses it."""

import json
import warnings

import pytest
import torch
from PIL import Image
from test_cli_train import SMALL, write_pictures

import dsn_kernels
import dsn_models
from dsn_kernels.cli.common import ASSETS
from dsn_models import UserError
from dsn_models.data import open_dataset

NORMALISED = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def saved(**data):
    torch.manual_seed(0)
    network = dsn_models.create("skipnet-38-rnn", stage_units=(1, 2, 1), classes=3)
    return dsn_models.save(network, "s.safetensors", data={**NORMALISED, **data})


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "data", 3)
    return tmp_path / "data"


def test_predict_names_classes(dsn, pictures):
    name = saved(classes={"fine": ["ant", "bee", "cat"]})
    files = sorted((pictures / "test").glob("*/0.png"))
    status, out, err = dsn("predict", name, *files, "--json", "-")
    rows = json.loads(out)["images"]
    assert status == 0 and len(rows) == 3, err
    model = dsn_models.load(name)
    for row, file in zip(rows, files, strict=True):
        with torch.no_grad():
            expected = model(model.preprocess(Image.open(file))[None])[0].softmax(0)
        (found,) = row["predictions"]
        assert found["label"] == int(expected.argmax()) and found["class"] == model.class_names[found["label"]]
        assert found["probability"] == pytest.approx(expected.max().item(), abs=1e-4)
        assert row["layers"]["units"] == {"used": int(model.last_gates["units"].sum()), "of": 3} and row["ms"] > 0
    status, out, _ = dsn("predict", name, files[0])
    assert status == 0 and all(word in out for word in ("probability", "units used", "of 3", "ms"))
    assert any(word in out for word in ("ant", "bee", "cat"))


def test_predict_refuses_in_one_line(dsn, pictures, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    bare = dsn_models.save(dsn_models.create("resnet-20", classes=3), "bare.safetensors")
    picture = next((pictures / "test").glob("*/0.png"))
    for words, told in (
        ((saved(), "text.jpg"), "text.jpg cannot be read as an image"),
        ((saved(), "absent.jpg"), "absent.jpg"),
        ((bare, picture), "does not say how its images were normalised; give --mean and --std"),
        (("absent", picture), "no checkpoint at absent"),
    ):
        status, out, err = dsn("predict", *words)
        assert (status, out, err.count("\n")) == (2, "", 1) and told in err
    status, out, _ = dsn("predict", bare, picture, "--mean", "0,0,0", "--std", "1,1,1")
    assert status == 0 and "used" not in out  # it has no gates


def test_a_trained_checkpoint_preprocesses_as_its_data_did(dsn, pictures, tmp_path):
    (tmp_path / "small.toml").write_text(SMALL)
    assert dsn("train", "small.toml", "--data", "data", "--out", "out")[0] == 0
    model = dsn_models.load("out/small.safetensors")
    assert model.class_names == ["class0", "class1", "class2"]
    dataset = open_dataset("folder", "data", False, image_size=32)
    for file, (images, _, _) in zip(dataset.files, dataset, strict=True):
        torch.testing.assert_close(model.preprocess(file[0]), images)
    assert dsn_kernels.accelerate(model).class_names == model.class_names
    # The next one tells what it began with.
    again = ("--data", "data", "--out", "next", "--init", "out/small.safetensors")
    assert dsn("train", "small.toml", *again)[0] == 0
    start = dsn_models.read_metadata("next/small.safetensors")["start"]
    assert start["checkpoint"] == "small.safetensors" and "accuracy" in start["test"]["fine"]


def test_a_converted_network_knows_cifar_10(dsn, tmp_path):
    from dsn_models.convert import export_skipnet

    export_skipnet(dsn_models.create("skipnet-38-rnn", stage_units=(6, 6, 6), classes=10), tmp_path / "released.pth")
    status, out, err = dsn("convert", "released.pth", "made.safetensors")
    assert status == 0 and "of the SkipNet authors' networks" in out, err
    model = dsn_models.load("made.safetensors")
    assert model.class_names[3] == "cat" and model.preprocess.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.rand(2, 3, 32, 32) * 255, "pixels of 0 to 255"),
        (torch.rand(2, 3, 32, 32), "pixels of 0 to 1 that were not normalised"),
        ((torch.rand(2, 3, 32, 32) * 4 - 2 - 0.5) / 0.25, "normalised twice"),
        ((torch.rand(2, 3, 32, 32) - 0.5) / 0.25, None),
    ],
)
def test_images_of_another_range_get_one_warning(images, told):
    fast = dsn_kernels.accelerate(dsn_models.load(saved()))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        fast(images)
        fast(images)
    assert len(found) == (told is not None) and all(told in str(one.message) for one in found)


def test_the_shipped_network_reads_pictures(dsn, pictures):
    status, out, err = dsn(
        "predict", ASSETS / "dsn-navon-digits.safetensors", next((pictures / "test").glob("*/0.png"))
    )
    assert status == 0 and all(word in out for word in ("coarse class", "fine class", "layers used")), err


def test_shapes_that_preprocessing_makes():
    grey = dsn_models.save(
        dsn_models.create("dsn-navon", image_size=16), "d.safetensors", data={"mean": [0.5], "std": [0.5]}
    )
    made = dsn_models.load(grey).preprocess(Image.new("L", (40, 20), 255))
    assert made.shape == (1, 16, 16) and torch.equal(made, torch.ones(1, 16, 16))
    wide = Image.new("RGB", (64, 32))
    assert dsn_models.load(saved(resize=40)).preprocess(wide).shape == (3, 32, 32)
    assert dsn_models.load(saved(resize="square")).preprocess(wide).shape == (3, 32, 32)
    with pytest.raises(UserError, match="cannot be read as an image"):
        dsn_models.load(saved()).preprocess(__file__)
