"""CIFAR-10 as JPEG bytes in one NumPy archive per part."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .cifar import CIFAR, CIFAR10_COARSE
from .images import read_image

# What the published CIFAR ResNets were trained with: ImageNet's statistics.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _read_archive(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays ``jpeg`` uint8, ``offsets`` [n + 1] and ``labels`` [n] of an archive."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            jpeg, offsets, labels = (archive[key] for key in ("jpeg", "offsets", "labels"))
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no archive of jpeg, offsets and labels, or cut short ({error})") from error
    if len(offsets) != len(labels) + 1 or (np.diff(offsets) <= 0).any() or offsets[0] != 0 or offsets[-1] > len(jpeg):
        raise UserError(f"{path}: offsets do not cut {len(jpeg)} bytes into {len(labels)} images; copy it again")
    if len(labels) and labels.max() > 9:
        raise UserError(f"{path} holds the label {labels.max()}; expected CIFAR-10's 0 to 9")
    return jpeg, offsets, labels


def decode(path: Path, images: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of an archive; of ``images`` evenly spaced ones if given.

    Evenly spaced, because the archives are sorted by class.

    Raises:
        UserError: the archive is foreign or damaged, an image is no 32x32 JPEG, or it holds fewer than ``images``.
    """
    jpeg, offsets, labels = _read_archive(path)
    count = len(labels) if images is None else images
    if count > len(labels):
        raise UserError(f"{path} holds {len(labels)} images; {count} were asked for")
    chosen = np.arange(count) * len(labels) // max(count, 1)
    pixels = np.empty((count, 32, 32, 3), np.uint8)
    for row, i in enumerate(chosen):
        try:
            file = io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes())
            pixels[row] = np.asarray(read_image(file, f"image {i}", ("JPEG",)))
        except ValueError as error:  # a UserError is one, and so is another shape
            raise UserError(f"{path}: image {i} is no 32x32 JPEG ({error}); copy the file again") from error
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels[chosen].astype(np.int64))


class CIFAR10Jpeg(CIFAR):
    """CIFAR-10 from ``cifar10-jpeg-train.npz`` or ``cifar10-jpeg-test.npz``, decoded once into memory (150 MB).

    An archive holds ``jpeg`` (uint8, the images' bytes one after another), ``offsets`` (int32 [n + 1]) and ``labels``
    (uint8 [n]). Classes, coarse task and augmentation are those of :class:`CIFAR`. Accuracies compare only within this
    set: JPEG changes the pixels.

    Args:
        root: the folder that holds the archives.
        train: the training images with augmentation, else the test images.
        images: so many evenly spaced images only; all if not given.
        mean, std: normalisation by channel, of pixels in [0, 1].
        seed: of the augmentation.

    Raises:
        UserError: the archive is missing, foreign or damaged, or kornia, which augments, is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool,
        images: int | None = None,
        *,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
        seed: int = 0,
    ) -> None:
        path = Path(root) / f"cifar10-jpeg-{'train' if train else 'test'}.npz"
        if not path.is_file():
            raise UserError(f"no {path.name} in {root}; expected the folder that holds the JPEG archives of CIFAR-10")
        pixels, fine = decode(path, images)
        self._normalise(mean, std, 3)
        self._hold(pixels, torch.tensor(CIFAR10_COARSE)[fine], fine, (2, 10), train, seed)
