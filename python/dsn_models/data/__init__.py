"""Data sets with a coarse and a fine task, read in the form in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from . import cifar, cifar_jpeg, folder, idx, navon
from .base import CoarseFineDataset

_NAVON = ("canvas", "glyph", "shade", "distortions", "fresh", "seed", "split_seed")
_OPTIONS = {
    "navon-idx": _NAVON,
    "navon-sklearn": _NAVON,
    "cifar-10": ("seed",),
    "cifar-100": ("seed",),
    "cifar-10-jpeg": ("mean", "std", "seed"),
    "folder": ("image_size", "augment", "seed"),
}
KINDS = tuple(_OPTIONS)

__all__ = ["KINDS", "CoarseFineDataset", "cifar", "cifar_jpeg", "folder", "idx", "navon", "open_dataset"]


def open_dataset(
    kind: str, path: str | Path | None, train: bool, images: int | None = None, **options: Any
) -> CoarseFineDataset:
    """The data set of a kind.

    Args:
        kind: one of :data:`KINDS`.
        path: the folder that holds it; none is needed for ``"navon-sklearn"``. A ``"folder"`` holds ``train``, ``test``
            and ``coarse.json``, the map from fine to coarse class names.
        train: the training part, with its augmentation, else the test part.
        images: number of Navon images, or of images read from ``"cifar-10-jpeg"`` archives.
        options: of the data set's class.

    Raises:
        UserError: the kind is unknown, a path is missing, or the files are damaged.
    """
    if kind not in KINDS:
        raise UserError(f"unknown data kind {kind!r}; expected one of {', '.join(KINDS)}")
    for key in options:
        if key not in _OPTIONS[kind]:
            known = ", ".join(_OPTIONS[kind])
            raise UserError(f"unknown option {key!r} of {kind} data; expected one of {known}")
    if kind == "navon-sklearn":
        return navon.from_sklearn(train, images, **options)
    if path is None or not Path(path).is_dir():
        raise UserError(f"data folder is {path}; expected an existing folder that holds {kind} data")
    if kind == "navon-idx":
        return navon.from_idx(path, train, images, **options)
    if kind == "folder":
        part = Path(path) / ("train" if train else "test")
        return folder.ImageFolder(part, Path(path) / "coarse.json", train=train, **options)
    if kind == "cifar-10-jpeg":
        return cifar_jpeg.CIFAR10Jpeg(path, train, images, **options)
    return cifar.CIFAR(path, train, 10 if kind == "cifar-10" else 100, **options)
