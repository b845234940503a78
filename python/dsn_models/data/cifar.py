"""CIFAR-10 and CIFAR-100 in the binary and python forms in which they are published."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .augmentation import RandomFlipCrop
from .base import Batch, CoarseFineDataset

CIFAR10_NAMES = {
    "coarse": ("vehicle", "animal"),
    "fine": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
CIFAR10_COARSE = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)
_IMAGE_BYTES = 3 * 32 * 32
_MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
_STD = {10: (0.2470, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and builtin containers, nothing else: a data file must not run code."""

    _ALLOWED = {
        ("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    }  # fmt: skip

    def find_class(self, module: str, name: str):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR file")
        return super().find_class(module, name)


def _read_python(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        data = np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32)
        labels = [np.asarray(content[key], np.int64) for key in keys]
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CIFAR python file, or cut short ({error}); download it again") from error
    if any(len(column) != len(data) for column in labels):
        raise UserError(f"{path} holds {len(data)} images but not as many labels; download it again")
    return [data, *labels]


def _read_binary(path: Path, label_bytes: int) -> list[np.ndarray]:
    raw = np.fromfile(path, np.uint8)
    record = label_bytes + _IMAGE_BYTES
    if raw.size == 0 or raw.size % record:
        raise UserError(f"{path} holds {raw.size} bytes; expected a multiple of {record}: cut short, download it again")
    rows = raw.reshape(-1, record)
    labels = [rows[:, i].astype(np.int64) for i in range(label_bytes)]
    return [rows[:, label_bytes:].reshape(-1, 3, 32, 32), *labels]


def _read(root: Path, train: bool, classes: int) -> list[np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and the columns of labels: (fine) of CIFAR-10, (coarse, fine) of CIFAR-100."""
    keys: tuple[str, ...]
    if classes == 10:
        stems = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
        folders, keys = ("cifar-10-batches-py", "cifar-10-batches-bin"), ("labels",)
    else:
        stems = ["train" if train else "test"]
        folders, keys = ("cifar-100-python", "cifar-100-binary"), ("coarse_labels", "fine_labels")
    for folder in (root, *(root / name for name in folders)):
        if all((folder / f"{stem}.bin").is_file() for stem in stems):
            parts = [_read_binary(folder / f"{stem}.bin", len(keys)) for stem in stems]
        elif all((folder / stem).is_file() for stem in stems):
            parts = [_read_python(folder / stem, keys) for stem in stems]
        else:
            continue
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    raise UserError(f"no {', '.join(stems)} (or .bin) in {root} or its {' or '.join(folders)}; unpack CIFAR-{classes}")


class CIFAR(CoarseFineDataset):
    """CIFAR-10 or CIFAR-100: images float32 [3, 32, 32], normalised by channel.

    CIFAR-100 has 20 coarse and 100 fine classes; CIFAR-10's coarse task is vehicles (0) against animals (1). Training
    images are mirrored and cropped at random (:class:`~.augmentation.RandomFlipCrop`).

    Args:
        root: the unpacked folder, or the folder that holds it.
        train: the 50,000 training images with augmentation, else the 10,000 test images.
        classes: 10 or 100.

    Raises:
        UserError: ``classes`` is neither, files are missing, foreign or cut short, or kornia, which augments, is not
            installed.
    """

    def __init__(self, root: str | Path, train: bool, classes: int = 100, *, seed: int = 0) -> None:
        if classes not in _MEAN:
            raise UserError(f"classes is {classes}; CIFAR has 10 or 100")
        columns = [torch.from_numpy(np.ascontiguousarray(a)) for a in _read(Path(root), train, classes)]
        images, fine = columns[0], columns[-1]
        if int(fine.max()) >= classes:
            raise UserError(f"{root} holds the label {int(fine.max())}; expected CIFAR-{classes}")
        coarse = columns[1] if classes == 100 else torch.tensor(CIFAR10_COARSE)[fine]
        counts = (20, 100) if classes == 100 else (2, 10)
        self._hold(images, coarse, fine, counts, _MEAN[classes], _STD[classes], train, seed)

    def _hold(
        self,
        images: Tensor,
        coarse: Tensor,
        fine: Tensor,
        classes: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        train: bool,
        seed: int,
    ) -> None:
        self.images, self.coarse, self.fine = images, coarse, fine
        self.coarse_classes, self.fine_classes = classes
        if self.fine_classes == 10:
            self.class_names = CIFAR10_NAMES
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self.augment = RandomFlipCrop(len(images), 32, 4, seed) if train else None

    def set_epoch(self, epoch: int) -> None:
        if self.augment is not None:
            self.augment.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Batch:
        images = (self.images[indices].float() / 255 - self.mean) / self.std
        if self.augment is not None:
            images = self.augment(images, indices)
        return images, self.coarse[indices], self.fine[indices]
