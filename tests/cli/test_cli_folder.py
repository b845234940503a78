"""Folder data from end to end: classes by name, in training and of a checkpoint, whatever a test folder lacks."""

import json

import pytest
from PIL import Image

from dsn_models.checkpoints import read_metadata

pytest.importorskip("kornia", reason="kornia, which augments, is not installed (the extra 'train')")

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
RECIPE = """
name = "tiny"
model = "resnet-20"
task = "fine"
[options]
classes = 3
image_size = 8
stage_units = [1, 1, 1]
stage_widths = [8, 8, 8]
stem_width = 8
[data]
kind = "folder"
[data.options]
image_size = 8
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[train]
epochs = 4
batch = 8
lr = 0.05
"""


def put(folder, name, count):
    (folder / name).mkdir(parents=True)
    for i in range(count):
        shade = 1 - i / 20
        Image.new("RGB", (8, 8), tuple(round(shade * c) for c in COLOURS[name])).save(folder / name / f"{i}.png")


@pytest.fixture
def trained(dsn, tmp_path):
    for name in COLOURS:
        put(tmp_path / "data" / "train", name, 8)
    for name in ("green", "red"):
        put(tmp_path / "data" / "test", name, 4)
    (tmp_path / "data" / "coarse.json").write_text(json.dumps(dict.fromkeys(COLOURS, "colour")))
    (tmp_path / "tiny.toml").write_text(RECIPE)
    status, out, err = dsn("train", "tiny.toml", "--data", "data", "--out", "out", "--json", "-")
    assert status == 0, err
    assert "note: data/test: no image of 1 of the 3 classes, 'blue'" in err
    return json.loads(out)


def test_images_are_resized_before_the_centre_is_cut_out(dsn, trained, tmp_path):
    """Pictures whose middle is another colour than the rest: the larger they become, the more of the middle is seen."""
    for name, middle in (("green", "red"), ("red", "green")):
        for i in range(4):
            image = Image.new("RGB", (24, 24), COLOURS[name])
            image.paste(COLOURS[middle], (8, 8, 16, 16))
            image.save(tmp_path / "data" / "test" / name / f"{i}.png")
    found = []
    for words in ((), ("--resize", "24"), ("--resize", "square")):
        status, out, err = dsn("eval", trained["checkpoint"], "--data", "data", *words, "--json", "-")
        assert status == 0, err
        found.append(json.loads(out)["fine"]["accuracy"])
    assert found == [1.0, 0.0, 1.0]
    for word in ("4", "-3", "large"):
        status, out, err = dsn("eval", trained["checkpoint"], "--data", "data", "--resize", word)
        assert (status, out, err.count("\n")) == (2, "", 1) and "expected 'square', or 8 pixels or more" in err


def test_a_test_part_without_one_class(dsn, trained, tmp_path):
    assert trained["test"]["fine"]["accuracy"] == 1.0
    kept = {"classes": {"fine": ["blue", "green", "red"]}, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert read_metadata(trained["checkpoint"])["data"] == kept
    for path in (tmp_path / "data" / "train").glob("*/*"):  # the checkpoint alone knows the classes from here on
        path.unlink()
    status, out, err = dsn("eval", trained["checkpoint"], "--data", "data", "--json", "-")
    assert (status, json.loads(out)["fine"]["accuracy"]) == (0, 1.0)
    assert err == "note: data/test: no image of 1 of the 3 classes, 'blue'\n"
    (tmp_path / "data" / "test" / "red").rename(tmp_path / "data" / "test" / "scarlet")
    (tmp_path / "data" / "coarse.json").write_text(json.dumps({"green": "colour", "scarlet": "colour"}))
    status, out, err = dsn("eval", trained["checkpoint"], "--data", "data")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "fine class 'scarlet' of data/test is none of the 3 that were trained on" in err


def test_a_damaged_image_is_one_line(dsn, trained, tmp_path):
    path = tmp_path / "data" / "test" / "red" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    status, out, err = dsn("eval", trained["checkpoint"], "--data", "data")
    assert (status, out) == (2, "") and err.splitlines()[-1].startswith(
        f"dsn: error: {path.relative_to(tmp_path)} cannot"
    )
