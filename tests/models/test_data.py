"""Data sets: determinism, disjoint digits, published file forms, damaged files."""

import gzip
import json
import pickle
import sys

import numpy as np
import pytest
import torch

from dsn_models import UserError
from dsn_models.data import cifar, idx, navon, open_dataset
from dsn_models.data.augmentation import RandomFlipCrop, RandomScaleCrop
from dsn_models.data.folder import ImageFolder


def write_idx(path, array):
    data = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder, prefix, count, suffix="", seed=0):
    """Digits that tell themselves apart: a solid box, its rows and columns by label and index."""
    labels = np.arange(count) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    for i in range(count):
        images[i, 4 : 8 + labels[i], 4 : 14 + (i + seed) % 10] = 255 - i % 200
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, suffix):
    array = np.arange(24).reshape(2, 3, 4)
    write_idx(tmp_path / f"a{suffix}", array)
    assert np.array_equal(idx.read_idx(tmp_path / f"a{suffix}"), array)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_cut_short(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_idx(path, np.random.default_rng(0).integers(0, 255, (20, 28, 28)))
    data = path.read_bytes()
    for cut in (0, 3, 6, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r"download it again|expected an IDX file"):
            idx.read_idx(path)


def test_idx_foreign_or_missing(tmp_path):
    (tmp_path / "a").write_bytes(b"not an IDX file")
    with pytest.raises(UserError, match="begins with 6e6f7420; expected an IDX file"):
        idx.read_idx(tmp_path / "a")
    (tmp_path / "b.gz").write_bytes(b"not gzipped")
    with pytest.raises(UserError, match="cannot be read"):
        idx.read_idx(tmp_path / "b.gz")
    with pytest.raises(UserError, match="no file"):
        idx.read_idx(tmp_path / "c")
    with pytest.raises(UserError, match="no t10k-images-idx3-ubyte"):
        navon.from_idx(tmp_path, train=True)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(3))
    with pytest.raises(UserError, match="does not hold a matching pair"):
        navon.from_idx(tmp_path, train=True)


def rows(dataset):
    return {tuple(glyph.flatten().tolist()) for glyph in dataset.glyphs}


def test_train_and_test_digits_are_disjoint(tmp_path):
    train, test = navon.from_sklearn(True, 10), navon.from_sklearn(False, 10)
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    assert not rows(train) & rows(test)
    write_mnist(tmp_path, "t10k", 50)
    train, test = navon.from_idx(tmp_path, True, 10), navon.from_idx(tmp_path, False, 10)
    assert (len(train.labels), len(test.labels)) == (40, 10)
    assert sorted(torch.cat([train.labels, test.labels]).tolist()) == sorted(list(range(10)) * 5)


def test_the_published_pairs_are_used_where_both_are_there(tmp_path):
    write_mnist(tmp_path, "t10k", 30, ".gz")
    write_mnist(tmp_path, "train", 70)
    assert len(navon.from_idx(tmp_path, True, 1).labels) == 70
    assert len(navon.from_idx(tmp_path, False, 1).labels) == 30


def test_an_image_is_the_big_digit_made_of_the_small_one():
    dataset = navon.from_sklearn(True, 100, canvas=32, glyph=4)
    image, coarse, fine = dataset[7]
    assert image.shape == (1, 32, 32)
    assert image.dtype == torch.float32
    small, big = dataset.pairs[7]
    assert (coarse, fine) == (dataset.labels[big], dataset.labels[small])
    expected = torch.kron(dataset.figures[big], dataset.glyphs[small])
    torch.testing.assert_close(image[0], expected)
    binary = navon.from_sklearn(True, 100, shade=False)
    assert set(binary.figures.unique().tolist()) == {0.0, 1.0}


def test_determinism_and_epochs():
    first, second = (navon.from_sklearn(True, 50, distortions=1, seed=3) for _ in range(2))
    index = torch.arange(50)
    assert all(torch.equal(a, b) for a, b in zip(first.batch(index), second.batch(index), strict=True))
    assert torch.equal(first[13][0], first.batch(index)[0][13])
    second.set_epoch(1)
    assert not torch.equal(first.batch(index)[1], second.batch(index)[1])
    second.set_epoch(0)
    assert torch.equal(first.batch(index)[0], second.batch(index)[0])
    test = navon.from_sklearn(False, 50)
    before = test.batch(index)[0]
    test.set_epoch(5)
    assert torch.equal(test.batch(index)[0], before)
    assert not torch.equal(navon.from_sklearn(False, 50, seed=1).batch(index)[0], before)


def test_any_number_of_images():
    assert len(navon.from_sklearn(True)) == 120_000
    assert len(navon.from_sklearn(False)) == 20_000
    images, coarse, fine = navon.from_sklearn(True, 3).batch(torch.arange(0))
    assert images.shape == (0, 1, 64, 64)
    assert coarse.shape == fine.shape == (0,)
    with pytest.raises(IndexError):
        navon.from_sklearn(True, 3)[3]
    with pytest.raises(UserError, match="a canvas that is a multiple of the glyph"):
        navon.from_sklearn(True, 3, canvas=63)


def test_cropping_finds_the_ink():
    digits = torch.zeros(2, 28, 28)
    digits[0, 3:11, 15:19] = 1.0  # 8 x 4 of ink: the square is 8 wide, 2 columns empty on each side
    cropped = navon._crop_to_ink(digits, 8)
    expected = torch.zeros(8, 8)
    expected[:, 2:6] = 1.0
    torch.testing.assert_close(cropped[0], expected, atol=0.25, rtol=0)
    assert cropped[0].mean() == pytest.approx(0.5, abs=0.05)
    assert not cropped[1].any()


def cifar_arrays(count, classes):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (count, 3072), np.uint8), generator.integers(0, classes, count)


def test_cifar_10_forms_agree(tmp_path):
    binary, python = tmp_path / "cifar-10-batches-bin", tmp_path / "py"
    binary.mkdir(), python.mkdir()
    for i, stem in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data, labels = cifar_arrays(4 + i, 10)
        (binary / f"{stem}.bin").write_bytes(np.concatenate([labels[:, None].astype(np.uint8), data], 1).tobytes())
        (python / stem).write_bytes(pickle.dumps({"data": data, "labels": labels.tolist()}, protocol=2))
    for train, count in ((True, 4 + 5 + 6 + 7 + 8), (False, 9)):
        a, b = cifar.CIFAR(tmp_path, train, 10), cifar.CIFAR(python, train, 10)
        assert len(a) == len(b) == count
        index = torch.arange(count)
        for x, y in zip(a.batch(index), b.batch(index), strict=True):
            assert torch.equal(x, y)
    assert a.batch(index)[0].shape == (9, 3, 32, 32)
    assert torch.equal(a.coarse, ((a.fine > 1) & (a.fine < 8)).long())
    (binary / "test_batch.bin").write_bytes(b"x" * 3000)
    with pytest.raises(UserError, match="holds 3000 bytes; expected a multiple of 3073"):
        cifar.CIFAR(tmp_path, False, 10)
    (python / "test_batch").write_bytes(pickle.dumps({"data": np.zeros((1, 3072), np.uint8)})[:-20])
    with pytest.raises(UserError, match="no CIFAR python file, or cut short"):
        cifar.CIFAR(python, False, 10)


def test_cifar_100_has_both_labels(tmp_path):
    data, fine = cifar_arrays(6, 100)
    content = {"data": data, "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(content))
    dataset = open_dataset("cifar-100", tmp_path, train=False)
    images, coarse, fine_labels = dataset.batch(torch.arange(6))
    assert fine_labels.tolist() == fine.tolist()
    assert coarse.tolist() == (fine // 5).tolist()
    assert (dataset.coarse_classes, dataset.fine_classes) == (20, 100)
    expected = (data.reshape(-1, 3, 32, 32)[2, 1, 5, 7] / 255 - 0.4865) / 0.2564
    assert images[2, 1, 5, 7].item() == pytest.approx(expected, abs=1e-5)


def write_cifar_100(folder):
    data, fine = cifar_arrays(6, 100)
    content = {"data": data, "fine_labels": fine.tolist(), "coarse_labels": (fine // 5).tolist()}
    (folder / "test").write_bytes(pickle.dumps(content))
    return data


def test_cifar_takes_the_normalisation_that_a_network_was_trained_with(tmp_path):
    data = write_cifar_100(tmp_path)
    like = {"mean": [0.5, 0.25, 0.0], "std": [0.5, 0.5, 2.0]}
    images = open_dataset("cifar-100", tmp_path, False, like=like).batch(torch.arange(6))[0]
    pixels = torch.from_numpy(data.reshape(-1, 3, 32, 32)).double() / 255
    for channel, (mean, std) in enumerate(zip(*like.values(), strict=True)):
        torch.testing.assert_close(images[:, channel].double(), (pixels[:, channel] - mean) / std)
    own = open_dataset("cifar-100", tmp_path, False, like=like, mean=[0, 0, 0])
    assert own.description() == {"classes": {}, "mean": [0, 0, 0], "std": [0.5, 0.5, 2.0]}
    assert open_dataset("cifar-100", tmp_path, False).description()["mean"] == [0.5071, 0.4865, 0.4409]
    with pytest.raises(UserError, match=r"std is \[1, 2\]; expected a number above 0 for each of the 3 channels"):
        open_dataset("cifar-100", tmp_path, False, std=[1, 2])


@pytest.mark.parametrize("form", ["meta", "txt"])
def test_cifar_100_names_its_classes_where_the_files_do(tmp_path, form):
    write_cifar_100(tmp_path)
    names = {"coarse": [f"group {i}" for i in range(20)], "fine": [f"kind{i}" for i in range(100)]}
    if form == "meta":
        (tmp_path / "meta").write_bytes(pickle.dumps({f"{task}_label_names": own for task, own in names.items()}))
    else:
        names["coarse"] = [name.replace(" ", "_") for name in names["coarse"]]
        for task, own in names.items():
            (tmp_path / f"{task}_label_names.txt").write_text("\n".join(own) + "\n")
    dataset = open_dataset("cifar-100", tmp_path, False)
    assert dataset.class_names == names and dataset.description("fine")["classes"] == {"fine": names["fine"]}
    assert len(open_dataset("cifar-100", tmp_path, False, like=dataset.description())) == 6
    other = {"classes": {"fine": [*names["fine"][1:], "kind0"]}}
    with pytest.raises(
        UserError, match="cifar-100 has the fine classes kind0, kind1, .*; the network was trained on kind1"
    ):
        open_dataset("cifar-100", tmp_path, False, like=other)
    (tmp_path / "meta").write_bytes(pickle.dumps({"coarse_label_names": ["a"], "fine_label_names": ["b"]}))
    with pytest.raises(UserError, match="names 1 coarse classes; expected CIFAR-100's 20"):
        open_dataset("cifar-100", tmp_path, False)


def test_normalised_navon_digits():
    plain = open_dataset("navon-sklearn", None, False, 4, canvas=16, glyph=4)
    like = {"mean": [0.5], "std": [0.25]}
    normalised = open_dataset("navon-sklearn", None, False, 4, like=like, canvas=16, glyph=4)
    torch.testing.assert_close(normalised[2][0], (plain[2][0] - 0.5) / 0.25)


def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    (tmp_path / "test").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="has no place in a CIFAR file"):
        cifar.CIFAR(tmp_path, False, 100)


def test_image_folder(tmp_path):
    from PIL import Image

    for part, name, colour in [("train", "oak", 10), ("train", "wren", 200), ("train", "owl", 90), ("test", "owl", 90)]:
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 12), (colour, 0, 0)).save(tmp_path / part / name / "1.png")
    (tmp_path / "coarse.json").write_text(json.dumps({"oak": "tree", "wren": "bird", "owl": "bird"}))
    dataset = open_dataset("folder", tmp_path, True, image_size=8)
    images, coarse, fine = dataset.batch(torch.arange(3))
    assert images.shape == (3, 3, 8, 8)
    assert fine.tolist() == [0, 1, 2]
    assert coarse.tolist() == [1, 0, 0]
    with pytest.raises(UserError, match="class 'oak' of .* is not in the coarse-label map"):
        ImageFolder(tmp_path / "train", {"owl": "bird", "wren": "bird"}, 8, True)
    with pytest.raises(UserError, match="no image in"):
        ImageFolder(tmp_path / "none", {}, 8, True)
    (tmp_path / "train" / "oak" / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read as an image"):
        dataset.batch(torch.arange(1))
    (tmp_path / "coarse.json").write_text("[1]")
    with pytest.raises(UserError, match="is no coarse-label map"):
        open_dataset("folder", tmp_path, True, image_size=8)


@pytest.mark.parametrize("augment", ["scale", "scale-colour"])
def test_scaled_crops_are_a_function_of_epoch_and_index(tmp_path, augment):
    from PIL import Image

    (tmp_path / "train" / "oak").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 12, 40, 3), np.uint8)
    for i in range(3):
        Image.fromarray(pixels[i]).save(tmp_path / "train" / "oak" / f"{i}.png")
    (tmp_path / "coarse.json").write_text('{"oak": "tree"}')
    dataset = open_dataset("folder", tmp_path, True, image_size=8, augment=augment)
    dataset.set_epoch(1)
    together = dataset.batch(torch.tensor([2, 0, 1]))[0]
    assert together.shape == (3, 3, 8, 8)
    assert torch.equal(dataset.batch(torch.tensor([0]))[0][0], together[1])
    dataset.set_epoch(2)
    assert not torch.equal(dataset.batch(torch.tensor([2, 0, 1]))[0], together)
    with pytest.raises(UserError, match="augment is 'turn'; expected one of shift, scale, scale-colour"):
        open_dataset("folder", tmp_path, True, image_size=8, augment="turn")


def test_a_scaled_crop_is_part_of_the_image_and_may_be_mirrored():
    """On a picture of its own coordinates: columns rise or fall, rows rise; narrow crops and wide ones."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    image = torch.stack([columns / 59, rows / 39, columns * 0])
    crop, mirrored, widths = RandomScaleCrop(16, False, 0), 0, []
    state = torch.get_rng_state()
    for index in range(64):
        seen = crop(image, index)
        across, down = seen[0, 8].diff(), seen[1, :, 8].diff()
        assert (down >= 0).all() and ((across >= 0).all() or (across <= 0).all())
        mirrored += int(across.sum() < 0)
        widths.append(float(across.sum().abs()))
    assert 16 < mirrored < 48
    assert min(widths) < 0.35 and max(widths) > 0.8
    assert torch.equal(torch.get_rng_state(), state)  # a model's own draws stay as they were
    assert torch.equal(crop(image, 63), seen)


def test_unknown_kind_and_missing_folder(tmp_path):
    with pytest.raises(UserError, match="unknown data kind 'mnist'; expected one of navon-idx"):
        open_dataset("mnist", None, True)
    with pytest.raises(UserError, match="expected an existing folder that holds cifar-10 data"):
        open_dataset("cifar-10", tmp_path / "none", True)
    with pytest.raises(UserError, match=r"no train \(or .bin\) in .*; unpack CIFAR-100"):
        open_dataset("cifar-100", tmp_path, True)


def test_augmentation_is_the_same_in_any_order_of_reading():
    images = torch.randn(6, 3, 8, 8)
    state = torch.get_rng_state()
    augment, index = RandomFlipCrop(6, 8, 2, seed=3), torch.tensor([4, 1, 3])
    augment.set_epoch(2)
    together = augment(images[index], index)
    assert torch.equal(torch.get_rng_state(), state)  # a model's own draws stay as they were
    alone = torch.cat([augment(images[i : i + 1], torch.tensor([i])) for i in (4, 1, 3)])
    assert torch.equal(together, alone)
    for image, changed in zip(images[index], together, strict=True):
        padded = [torch.nn.functional.pad(side, (2,) * 4) for side in (image, image.flip(2))]
        crops = [side[:, y : y + 8, x : x + 8] for side in padded for y in range(5) for x in range(5)]
        assert any(torch.equal(changed, crop) for crop in crops)
    augment.set_epoch(3)
    assert not torch.equal(augment(images[index], index), together)


def test_without_kornia_a_training_set_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(UserError, match=r"augmentation needs kornia .*; pip install 'dsn-kernels\[train\]'"):
        RandomFlipCrop(6, 8, 2, seed=3)
