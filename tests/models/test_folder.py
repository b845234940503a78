"""Image folders: classes by name, from a checkpoint or the training part; what is no data is counted and said."""

import json

import pytest
import torch
from PIL import Image

from dsn_models import UserError
from dsn_models.data import open_dataset
from dsn_models.data.folder import read_coarse_map, scan

COARSE = {"ant": "insect", "bee": "insect", "cat": "mammal", "dog": "mammal"}


def put(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path, "PNG")


@pytest.fixture
def data(tmp_path):
    """Three classes to train on, of which the test part lacks the first."""
    for part, classes in (("train", ("ant", "bee", "cat")), ("test", ("bee", "cat"))):
        for name in classes:
            put(tmp_path / part / name / "1.png", 10 * len(part))
    (tmp_path / "coarse.json").write_text(json.dumps(COARSE))
    return tmp_path


def opened(path, train=False, **options):
    return open_dataset("folder", path, train, image_size=8, **options)


def labels(dataset):
    _, coarse, fine = dataset.batch(torch.arange(len(dataset)))
    return coarse.tolist(), fine.tolist()


def test_a_class_that_the_test_part_lacks_keeps_its_number(data):
    """Numbered by its own folders the test part would call a bee 0, which the network calls 1."""
    test = opened(data)
    assert labels(test) == ([0, 1], [1, 2])
    assert (test.coarse_classes, test.fine_classes) == (2, 3)
    assert test.class_names == {"coarse": ["insect", "mammal"], "fine": ["ant", "bee", "cat"]}
    assert test.notes == [f"{data / 'test'}: no image of 1 of the 3 classes, 'ant'"]


def test_a_class_of_which_only_the_coarse_one_is_left(data):
    (data / "test" / "bee" / "1.png").unlink()
    test = opened(data)
    assert labels(test) == ([1], [2])
    assert "skipped 1 folder without images ('bee')" in test.notes[0]
    assert "no image of 2 of the 3 classes, 'ant', 'bee'" in test.notes[1]


def test_a_class_that_was_not_trained_on_is_refused_by_name(data):
    (data / "test" / "bee").rename(data / "test" / "bees")
    with pytest.raises(
        UserError, match="fine class 'bees' of .*test is none of the 3 that were trained on, near 'bee'"
    ):
        opened(data)
    put(data / "test" / "dog" / "1.png")
    (data / "test" / "bees").rename(data / "test" / "bee")
    with pytest.raises(
        UserError, match="fine class 'dog' of .* which are 'ant', 'bee', 'cat'; rename or remove its folder"
    ):
        opened(data)


def test_a_checkpoint_numbers_the_classes(data):
    like = {"classes": {"coarse": ["mammal", "insect"], "fine": ["cat", "dog", "bee"]}}
    assert labels(opened(data, like=like)) == ([0, 1], [0, 2])
    assert opened(data, like=like).notes[-1].endswith("no image of 1 of the 3 classes, 'dog'")
    with pytest.raises(UserError, match="fine class 'bee' .* is none of the 2 that were trained on"):
        opened(data, like={"classes": {"fine": ["cat", "dog"]}})
    with pytest.raises(UserError, match="coarse class 'insect' .* is none of the 1 that were trained on"):
        opened(data, like={"classes": {"coarse": ["mammal"]}})


def test_one_coarse_task_does_not_care_for_fine_names(data):
    put(data / "test" / "dog" / "1.png")
    (data / "train" / "cat").rename(data / "train" / "dog")
    (data / "test" / "cat" / "1.png").unlink()
    like = opened(data, True).description("coarse")
    assert like["classes"] == {"coarse": ["insect", "mammal"]}
    assert labels(opened(data, like=like))[0] == [0, 1]


def test_where_nothing_else_names_the_classes_the_part_itself_does_and_says_so(data):
    for path in (data / "train").glob("*/1.png"):
        path.unlink()
    test = opened(data)
    assert labels(test)[1] == [0, 1]
    assert "classes are numbered as test has them, since neither a checkpoint nor train names them" in test.notes[-1]


def test_names_that_look_alike_are_alike(tmp_path):
    """e with an acute accent as one character, and as a letter and a combining accent."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    put(tmp_path / "train" / composed / "1.png")
    put(tmp_path / "train" / "bar" / "1.png")
    put(tmp_path / "test" / decomposed / "1.png")
    put(tmp_path / "test" / composed / "2.png")
    (tmp_path / "coarse.json").write_text(json.dumps({decomposed: "place", "bar": "place"}))
    test = opened(tmp_path)
    assert labels(test) == ([0, 0], [1, 1]) and test.class_names["fine"] == ["bar", composed]
    assert len(opened(tmp_path, like={"classes": {"fine": ["bar", decomposed]}})) == 2
    (tmp_path / "coarse.json").write_text(json.dumps({decomposed: "place", composed: "drink"}))
    with pytest.raises(UserError, match=f"gives class '{composed}' two coarse classes; keep one"):
        read_coarse_map(tmp_path / "coarse.json")


def test_what_is_no_data_is_hidden_or_counted(data):
    root = data / "test"
    put(root / "bee" / "2.JPEG")
    put(root / "bee" / "3.tif")
    for hidden in (root / ".ipynb_checkpoints" / "1.png", root / "bee" / "._1.png", root / "bee" / ".thumb" / "1.png"):
        put(hidden)
    for other in (root / "readme.txt", root / "loose.png", root / "bee" / "notes.txt", root / "bee" / "clip.mp4"):
        other.write_bytes(b"x")
    put(root / "bee" / "more" / "1.png")
    (root / "empty").mkdir()
    images, notes = scan(root)
    assert {name: [path.name for path in paths] for name, paths in images.items()} == {
        "bee": ["1.png", "2.JPEG", "3.tif"],
        "cat": ["1.png"],
    }
    said = "skipped 4 files that are no images of a class, 1 folder inside a class, 1 folder without images ('empty')"
    assert notes == [f"{root}: {said}"]
    assert opened(data).notes[0] == notes[0]
    assert scan(data / "train")[1] == []


def test_normalisation(data):
    image = opened(data, mean=[0.0, 0.5, 0.25], std=[1.0, 0.5, 0.25]).batch(torch.tensor([0]))[0][0]
    assert image[:, 0, 0].tolist() == pytest.approx([40 / 255, -1, -1])
    for options in ({"mean": [0.5]}, {"std": [1, 1, 0]}, {"mean": [0, 0, float("nan")]}, {"std": "1,1"}, {"mean": 0.5}):
        with pytest.raises(UserError, match="for each of the 3 channels of the images"):
            opened(data, **options)


def test_a_number_of_images_is_not_ignored(data):
    with pytest.raises(
        UserError, match="3 images of folder data were asked for; it is read whole, leave the number out"
    ):
        open_dataset("folder", data, False, 3, image_size=8)
