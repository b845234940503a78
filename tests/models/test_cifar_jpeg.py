import io

import numpy as np
import pytest
import torch
from PIL import Image

from dsn_models import UserError
from dsn_models.data import open_dataset


def write_archive(folder, part="test", size=32, **changes):
    """Ten flat grey images, one per class, sorted by class."""
    encoded = []
    for i in range(10):
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), (20 * i, 20 * i, 20 * i)).save(buffer, "JPEG", quality=95)
        encoded.append(buffer.getvalue())
    arrays = {
        "jpeg": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)]).astype(np.int32),
        "labels": np.arange(10, dtype=np.uint8),
    }
    np.savez(folder / f"cifar10-jpeg-{part}.npz", **{**arrays, **changes})


def test_images_and_labels(tmp_path):
    write_archive(tmp_path)
    dataset = open_dataset("cifar-10-jpeg", tmp_path, False)
    images, coarse, fine = dataset.batch(torch.tensor([3, 9]))
    assert images.shape == (2, 3, 32, 32)
    assert fine.tolist() == [3, 9]
    assert coarse.tolist() == [1, 0]
    assert images[0, 1].mean().item() == pytest.approx((60 / 255 - 0.456) / 0.224, abs=0.02)
    assert (dataset.coarse_classes, dataset.fine_classes) == (2, 10)


def test_a_part_is_evenly_spaced(tmp_path):
    write_archive(tmp_path)
    dataset = open_dataset("cifar-10-jpeg", tmp_path, False, images=4)
    assert dataset.fine.tolist() == [0, 2, 5, 7]
    with pytest.raises(UserError, match="holds 10 images; 11 were asked for"):
        open_dataset("cifar-10-jpeg", tmp_path, False, images=11)


def test_training_images_depend_on_the_epoch(tmp_path):
    write_archive(tmp_path, "train")
    dataset = open_dataset("cifar-10-jpeg", tmp_path, True, seed=1)
    index = torch.arange(10)
    first = dataset.batch(index)[0]
    dataset.set_epoch(1)
    assert not torch.equal(dataset.batch(index)[0], first)
    dataset.set_epoch(0)
    assert torch.equal(dataset.batch(index)[0], first)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.full(10, 12, np.uint8)}, "holds the label 12; expected CIFAR-10's 0 to 9"),
        ({"labels": np.zeros(9, np.uint8)}, "offsets do not cut"),
        ({"offsets": np.zeros(11, np.int32)}, "offsets do not cut"),
        ({"jpeg": np.zeros(100_000, np.uint8)}, "image 0 is no 32x32 JPEG"),
        ({"size": 16}, "image 0 is no 32x32 JPEG"),
    ],
)
def test_damage_is_told(tmp_path, changes, said):
    write_archive(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        open_dataset("cifar-10-jpeg", tmp_path, False)


def test_missing_and_cut_short(tmp_path):
    with pytest.raises(UserError, match=r"no cifar10-jpeg-test\.npz in"):
        open_dataset("cifar-10-jpeg", tmp_path, False)
    write_archive(tmp_path)
    path = tmp_path / "cifar10-jpeg-test.npz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="or cut short"):
        open_dataset("cifar-10-jpeg", tmp_path, False)
