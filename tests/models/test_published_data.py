"""Readers of SVHN, CUB-200-2011 and Stanford Cars in the form in which they are published, and images held out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_names import BIRDS, CARS
from scipy.io import savemat

from dsn_models import UserError
from dsn_models.data import KINDS, cars, cub, navon, open_dataset, told_kind


def write_svhn(folder, part, count=6, **changes):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, count), np.uint8)
    content = {"X": pixels, "y": (np.arange(count, dtype=np.uint8) % 10 + 1)[:, None], **changes}
    savemat(folder / f"{part}_32x32.mat", content)
    return pixels


def test_svhn(tmp_path):
    pixels = write_svhn(tmp_path, "test", 12)
    dataset = open_dataset("svhn", tmp_path, False, mean=[0, 0, 0], std=[1, 1, 1])
    images, coarse, fine = dataset.batch(torch.arange(12))
    assert fine.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2] and torch.equal(coarse, fine)
    torch.testing.assert_close(images, torch.from_numpy(pixels).permute(3, 2, 0, 1).float() / 255)
    assert (dataset.coarse_classes, dataset.fine_classes) == (10, 10)
    assert list(dataset.class_names["fine"]) == list("0123456789")
    assert told_kind(tmp_path) == "svhn"


def test_svhn_with_its_extra_images(tmp_path):
    write_svhn(tmp_path, "train", 4)
    write_svhn(tmp_path, "extra", 1)
    assert len(open_dataset("svhn", tmp_path, True)) == 4
    assert len(open_dataset("svhn", tmp_path, True, extra=True)) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"X": np.zeros((32, 32, 1, 6), np.uint8)}, r"X is uint8 \[32, 32, 1, 6\]; expected uint8 \[32, 32, 3, N\]"),
        ({"X": np.zeros((32, 32, 3, 6))}, "X is float64"),
        ({"y": np.ones(5, np.uint8)}, "holds 6 images and 5 labels"),
        ({"y": np.full(6, 11, np.uint8)}, "y holds other labels than 1 to 10"),
    ],
)
def test_svhn_of_another_form(tmp_path, change, said):
    write_svhn(tmp_path, "test", **change)
    with pytest.raises(UserError, match=said):
        open_dataset("svhn", tmp_path, False)


def test_svhn_that_is_missing_cut_short_or_another_file(tmp_path):
    with pytest.raises(UserError, match="no test_32x32.mat in"):
        open_dataset("svhn", tmp_path, False)
    path = tmp_path / "test_32x32.mat"
    write_svhn(tmp_path, "test")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>", whole[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no file of MATLAB, or cut short .*download it again|has no variable"):
            open_dataset("svhn", tmp_path, False)
    savemat(path, {"X": np.zeros(3)})
    with pytest.raises(UserError, match="has no variable 'y'"):
        open_dataset("svhn", tmp_path, False)


def test_every_species_has_a_family_and_there_are_39():
    families = [cub.family_of(name) for name in BIRDS]
    assert len(BIRDS) == 200 and len(set(families)) == 39 and set(families) == set(cub.FAMILIES)
    told = dict(zip(BIRDS, families, strict=True))
    assert told["001.Black_footed_Albatross"] == "Diomedeidae"  # the paper's example
    assert told["118.House_Sparrow"] == "Passeridae" and told["122.Harris_Sparrow"] == "Passerellidae"
    assert told["055.Evening_Grosbeak"] == "Fringillidae" and told["057.Rose_breasted_Grosbeak"] == "Cardinalidae"
    assert told["018.Spotted_Catbird"] == "Ptilonorhynchidae" and told["019.Gray_Catbird"] == "Mimidae"
    with pytest.raises(UserError, match=r"class '201.Dodo' is no species of CUB-200-2011"):
        cub.family_of("201.Dodo")


SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.House_Sparrow")


@pytest.fixture
def birds(tmp_path):
    """Six images in the published form, one training and one test image of each species."""
    root = tmp_path / "CUB_200_2011"
    lists = {name: [] for name in ("images", "image_class_labels", "train_test_split", "classes")}
    for label, name in enumerate(SPECIES, 1):
        lists["classes"].append(f"{label} {name}")
        (root / "images" / name).mkdir(parents=True)
        for part in (0, 1):
            number = 2 * label + part - 1
            Image.new("RGB", (40, 20), (40 * number, 0, 0)).save(root / "images" / name / f"{number}.jpg")
            lists["images"].append(f"{number} {name}/{number}.jpg")
            lists["image_class_labels"].append(f"{number} {label}")
            lists["train_test_split"].append(f"{number} {1 - part}")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("inside", [True, False])
def test_cub(birds, inside):
    root = birds if inside else birds.parent
    assert told_kind(root) == "cub-200-2011"
    for train in (True, False):
        dataset = open_dataset("cub-200-2011", root, train, image_size=8, mean=[0, 0, 0], std=[1, 1, 1])
        dataset.unaugmented()
        images, coarse, fine = dataset.batch(torch.arange(3))
        assert images.shape == (3, 3, 8, 8) and fine.tolist() == [0, 1, 2] and coarse.tolist() == [0, 0, 1]
        expected = torch.tensor([40.0, 120, 200]) + (0 if train else 40)
        torch.testing.assert_close(images[:, 0].mean((1, 2)) * 255, expected, atol=3, rtol=0)
    assert dataset.class_names == {"coarse": ["Diomedeidae", "Passeridae"], "fine": list(SPECIES)}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("images", None, "no images.txt in"),
        ("classes", None, "no classes.txt in .*; expected CUB_200_2011 as it is published"),
        ("train_test_split", "1 1\n2 0\n", "train_test_split.txt has 2 images, images.txt 6"),
        ("train_test_split", "\n".join(f"{i} 1" for i in range(1, 7)), "has no test image"),
        ("train_test_split", "1 2\n", "image 1 has '2'; expected one of 0 to 1"),
        ("image_class_labels", "1 4\n", "image 1 has '4'; expected one of 1 to 3"),
        ("images", "1 a.jpg\n2", "images.txt, line 2: '2'; expected a number and a word"),
        ("classes", "2 002.Laysan_Albatross\n", "does not number its classes from 1 on"),
        ("classes", "1 Dodo\n2 Emu\n3 Kea\n", "class 'Dodo' is no species"),
    ],
)
def test_cub_of_another_form(birds, name, content, said):
    path = birds / f"{name}.txt"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=said):
        open_dataset("cub-200-2011", birds, False, image_size=8)


def test_an_image_that_is_not_there(birds):
    (birds / "images" / SPECIES[0] / "2.jpg").unlink()
    dataset = open_dataset("cub-200-2011", birds, False, image_size=8)
    with pytest.raises(UserError, match=r"2.jpg cannot be read as an image"):
        dataset.batch(torch.arange(1))


def test_every_model_has_a_type():
    for name, models in CARS.items():
        assert {cars.type_of(model) for model in models} == {name}
    assert set(CARS) == set(cars.TYPES)
    with pytest.raises(UserError, match="class 'Trabant 601 1964' is no model of Stanford Cars"):
        cars.type_of("Trabant 601 1964")


MODELS = ("AM General Hummer SUV 2000", "Acura TL Sedan 2012", "Acura TL Type-S 2008")


def write_cars(root, form):
    """Two images of each model, the first of them for training."""
    names = np.array(MODELS, dtype=object)
    rows = [(label, part) for part in (0, 1) for label in (1, 2, 3)]
    for label, part in rows:
        folder = root / ("car_ims" if form == "first" else ("cars_train", "cars_test")[part])
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), (40 * label, 100 * part, 0)).save(folder / f"{label}{part}.jpg")
    if form == "first":
        kind = [("relative_im_path", object), ("class", object), ("test", object)]
        annotations = np.array([(f"car_ims/{label}{part}.jpg", label, part) for label, part in rows], dtype=kind)
        savemat(root / "cars_annos.mat", {"annotations": annotations[None], "class_names": names[None]})
        return
    devkit = root / "devkit"
    devkit.mkdir()
    savemat(devkit / "cars_meta.mat", {"class_names": names[None]})
    for part, file in enumerate(("cars_train_annos.mat", "cars_test_annos_withlabels.mat")):
        own = [(label, f"{label}{part}.jpg") for label in (1, 2, 3)]
        annotations = np.array(own, dtype=[("class", object), ("fname", object)])
        savemat(devkit / file, {"annotations": annotations[None]})


@pytest.mark.parametrize("form", ["first", "second"])
def test_cars(tmp_path, form):
    write_cars(tmp_path, form)
    assert told_kind(tmp_path) == "stanford-cars"
    for train in (True, False):
        dataset = open_dataset("stanford-cars", tmp_path, train, image_size=8, mean=[0, 0, 0], std=[1, 1, 1])
        dataset.unaugmented()
        images, coarse, fine = dataset.batch(torch.arange(3))
        assert fine.tolist() == [0, 1, 2] and coarse.tolist() == [0, 1, 1]
        torch.testing.assert_close(images[:, 0].mean((1, 2)) * 255, torch.tensor([40.0, 80, 120]), atol=3, rtol=0)
        torch.testing.assert_close(images[:, 1].mean() * 255, torch.tensor(0.0 if train else 100.0), atol=3, rtol=0)
    assert dataset.class_names == {"coarse": ["SUV", "Sedan"], "fine": list(MODELS)}


def test_cars_of_another_form(tmp_path):
    with pytest.raises(UserError, match="no cars_meta.mat in .* or its devkit, and no cars_annos.mat"):
        open_dataset("stanford-cars", tmp_path, False)
    write_cars(tmp_path, "second")
    labelled = tmp_path / "devkit" / "cars_test_annos_withlabels.mat"
    unlabelled = np.array([("1.jpg",)], dtype=[("fname", object)])
    savemat(labelled, {"annotations": unlabelled[None]})
    with pytest.raises(UserError, match="annotations have no 'class'"):
        open_dataset("stanford-cars", tmp_path, False)
    savemat(labelled, {"annotations": np.array([(4, "1.jpg")], dtype=[("class", object), ("fname", object)])[None]})
    with pytest.raises(UserError, match="holds the class 4; expected 1 to 3"):
        open_dataset("stanford-cars", tmp_path, False)
    labelled.write_bytes(labelled.read_bytes()[:150])
    with pytest.raises(UserError, match="cars_test_annos_withlabels.mat"):
        open_dataset("stanford-cars", tmp_path, False)
    labelled.unlink()
    with pytest.raises(UserError, match="no cars_test_annos_withlabels.mat in"):
        open_dataset("stanford-cars", tmp_path, False)


def folder_of_one(tmp_path, image):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a").mkdir(parents=True)
    for part in ("train", "test"):
        image.save(tmp_path / part / "a" / "1.png")
    return tmp_path


def test_the_usual_evaluation_resizes_and_cuts_out_the_centre(tmp_path):
    """A picture of 64 x 32 whose red is its column: of 32 x 16, as it is resized, the middle 8 x 8 is left."""
    columns = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 64, 3)).copy()
    root = folder_of_one(tmp_path, Image.fromarray(columns))
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 8}
    images = open_dataset("folder", root, False, resize=16, **plain).batch(torch.arange(1))[0]
    middle = (torch.arange(12, 20) * 2 + 0.5) * 4 / 255
    torch.testing.assert_close(images[0, 0, 3], middle, atol=0.01, rtol=0)
    square = open_dataset("folder", root, False, resize="square", **plain).batch(torch.arange(1))[0]
    torch.testing.assert_close(square[0, 0, 3], (torch.arange(8) * 8 + 3.5) * 4 / 255, atol=0.03, rtol=0)
    with pytest.raises(UserError, match="resize is 4; expected 'square', or 8 pixels or more, the image_size"):
        open_dataset("folder", root, False, resize=4, **plain)


def test_images_are_held_out_of_training(tmp_path):
    write_svhn(tmp_path, "train", 50)
    whole = open_dataset("svhn", tmp_path, True)
    rest = open_dataset("svhn", tmp_path, True, validation=20)
    held = open_dataset("svhn", tmp_path, False, validation=20)  # no test file is needed
    assert (len(rest), len(held)) == (30, 20)
    both = torch.cat([part.batch(torch.arange(len(part)))[0] for part in (rest, held)]).flatten(1)
    every = whole.batch(torch.arange(50))[0].flatten(1)
    assert sorted(both.sum(1).tolist()) == pytest.approx(sorted(every.sum(1).tolist()))
    again = open_dataset("svhn", tmp_path, False, validation=20)
    assert torch.equal(held.batch(torch.arange(20))[0], again.batch(torch.arange(20))[0])
    assert held.description() == whole.description() and held.fine_classes == 10
    for count in (50, 51):
        with pytest.raises(UserError, match=f"validation is {count}; expected fewer than the 50 training images"):
            open_dataset("svhn", tmp_path, True, validation=count)


def test_held_out_images_are_not_augmented(tmp_path):
    root = folder_of_one(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)))
    for i in range(9):
        (root / "train" / "a" / f"{i + 2}.png").write_bytes((root / "train" / "a" / "1.png").read_bytes())
    held, rest = (open_dataset("folder", root, train, image_size=8, validation=4) for train in (False, True))
    pictures = []
    for part in (held, rest):
        for epoch in range(3):
            part.set_epoch(epoch)
            pictures.append(part.batch(torch.arange(4))[0])
    assert all(torch.equal(pictures[0][0], picture) for batch in pictures[:3] for picture in batch)
    assert not torch.equal(pictures[3], pictures[4])


def test_images_that_are_made_cannot_be_held_out():
    with pytest.raises(UserError, match="images of this kind are made, not read; none can be held out"):
        open_dataset("navon-sklearn", None, False, 40, canvas=16, glyph=4, validation=8)
    assert isinstance(open_dataset("navon-sklearn", None, False, 4), navon.NavonDigits)


def test_every_kind_is_told_of_in_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in text] == []
