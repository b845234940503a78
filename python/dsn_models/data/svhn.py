"""SVHN, street view house numbers (Netzer et al., 2011), cropped digits, in the MATLAB files that are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .cifar import CIFAR
from .matlab import read_matlab

_MEAN, _STD = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
_NAMES = tuple("0123456789")


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and digits int64 [N] of a file."""
    content = read_matlab(path, ("X", "y"), squeeze=False)
    images, labels = np.asarray(content["X"]), np.asarray(content["y"]).flatten()
    if images.ndim == 3:  # MATLAB has no last dimension of one
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise UserError(f"{path}: X is {images.dtype} {[*images.shape]}; expected uint8 [32, 32, 3, N], cropped digits")
    if labels.shape != images.shape[3:]:
        raise UserError(f"{path} holds {images.shape[3]} images and {labels.size} labels; download it again")
    if not np.isin(labels, range(1, 11)).all():
        raise UserError(f"{path}: y holds other labels than 1 to 10; download it again")
    return images.transpose(3, 0, 1, 2), labels.astype(np.int64) % 10  # 10 stands for the digit 0


class SVHN(CIFAR):
    """SVHN's cropped digits: images float32 [3, 32, 32], normalised by channel. Each digit is its own coarse class.

    Digits are neither mirrored nor shifted.

    Args:
        root: holds ``train_32x32.mat`` and ``test_32x32.mat``, and perhaps ``extra_32x32.mat``.
        train: the 73,257 training images, else the 26,032 test images.
        extra: the 531,131 extra images join the training images.
        mean, std: normalisation by channel, of pixels in [0, 1]; SVHN's if not given.

    Raises:
        UserError: files are missing, damaged or cut short.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool,
        *,
        extra: bool = False,
        mean: Sequence[float] = _MEAN,
        std: Sequence[float] = _STD,
    ) -> None:
        parts = (("train", "extra") if extra else ("train",)) if train else ("test",)
        read = [_read(Path(root) / f"{part}_32x32.mat") for part in parts]
        pixels, digits = (torch.from_numpy(np.concatenate(column)) for column in zip(*read, strict=True))
        self._normalise(mean, std, 3)
        self._hold(pixels.permute(0, 3, 1, 2).contiguous(), digits, digits, (10, 10), False, 0)
        self.class_names = {"coarse": _NAMES, "fine": _NAMES}
