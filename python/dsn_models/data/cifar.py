"""CIFAR-10 and CIFAR-100 in the binary and python forms in which they are published."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _read_python(path: Path, keys: tuple[str, ...]) -> list[np.ndarray]:
    try:
        content = _unpickle(path)
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


def _cifar100_names(folder: Path) -> dict[str, list[str]]:
    """The names of CIFAR-100's classes by task, where the folder has the file that tells them."""
    tasks = ("coarse", "fine")
    try:
        if (folder / "meta").is_file():
            content = _unpickle(folder / "meta")
            names = {task: [str(name) for name in content[f"{task}_label_names"]] for task in tasks}
        else:
            files = {task: folder / f"{task}_label_names.txt" for task in tasks}
            names = {task: path.read_text(encoding="utf-8").split() for task, path in files.items() if path.is_file()}
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"names of the classes in {folder} cannot be read ({error}); download them again") from error
    for task, count in zip(tasks, (20, 100), strict=True):
        if task in names and len(names[task]) != count:
            raise UserError(f"{folder} names {len(names[task])} {task} classes; expected CIFAR-100's {count}")
    return names


def _read(root: Path, train: bool, classes: int) -> tuple[list[np.ndarray], dict[str, list[str]]]:
    """Images uint8 [N, 3, 32, 32] and the columns of labels: (fine) of CIFAR-10, (coarse, fine) of CIFAR-100.

    Also the names of CIFAR-100's classes, where the files tell them.
    """
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
        names = _cifar100_names(folder) if classes == 100 else {}
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)], names
    raise UserError(f"no {', '.join(stems)} (or .bin) in {root} or its {' or '.join(folders)}; unpack CIFAR-{classes}")


class CIFAR(CoarseFineDataset):
    """CIFAR-10 or CIFAR-100: images float32 [3, 32, 32], normalised by channel.

    CIFAR-100 has 20 coarse and 100 fine classes; CIFAR-10's coarse task is vehicles (0) against animals (1). Training
    images are mirrored and cropped at random (:class:`~.augmentation.RandomFlipCrop`).

    Args:
        root: the unpacked folder, or the folder that holds it.
        train: the 50,000 training images with augmentation, else the 10,000 test images.
        classes: 10 or 100.
        mean, std: normalisation by channel, of pixels in [0, 1]; those of the training images if not given.

    Raises:
        UserError: ``classes`` is neither, files are missing, foreign or cut short, or kornia, which augments, is not
            installed.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool,
        classes: int = 100,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        if classes not in _MEAN:
            raise UserError(f"classes is {classes}; CIFAR has 10 or 100")
        arrays, names = _read(Path(root), train, classes)
        columns = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        images, fine = columns[0], columns[-1]
        if int(fine.max()) >= classes:
            raise UserError(f"{root} holds the label {int(fine.max())}; expected CIFAR-{classes}")
        coarse = columns[1] if classes == 100 else torch.tensor(CIFAR10_COARSE)[fine]
        counts = (20, 100) if classes == 100 else (2, 10)
        self._normalise(_MEAN[classes] if mean is None else mean, _STD[classes] if std is None else std, 3)
        self._hold(images, coarse, fine, counts, train, seed)
        if names:
            self.class_names = names

    def _hold(
        self, images: Tensor, coarse: Tensor, fine: Tensor, classes: tuple[int, int], train: bool, seed: int
    ) -> None:
        self.images, self.coarse, self.fine = images, coarse, fine
        self.coarse_classes, self.fine_classes = classes
        if self.fine_classes == 10:
            self.class_names = CIFAR10_NAMES
        self.augment = RandomFlipCrop(len(images), 32, 4, seed) if train else None

    def unaugmented(self) -> None:
        self.augment = None

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
