"""Data sets with a coarse and a fine task, read in the form in which they are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, expected
from . import cars, cifar, cifar_jpeg, cub, folder, idx, navon, svhn
from .base import CoarseFineDataset
from .held_out import held_out

_NORMALISATION = ("mean", "std")
_NAVON = ("canvas", "glyph", "shade", "distortions", "fresh", "seed", "split_seed", *_NORMALISATION)
_FILES = ("image_size", "augment", "resize", "seed", *_NORMALISATION)
_OPTIONS = {
    "navon-idx": _NAVON,
    "navon-sklearn": _NAVON,
    "cifar-10": ("seed", *_NORMALISATION),
    "cifar-100": ("seed", *_NORMALISATION),
    "cifar-10-jpeg": ("seed", *_NORMALISATION),
    "svhn": ("extra", *_NORMALISATION),
    "cub-200-2011": _FILES,
    "stanford-cars": _FILES,
    "folder": _FILES,
}
KINDS = tuple(_OPTIONS)
#: Kinds whose images are made, in any number.
MADE = ("navon-idx", "navon-sklearn")
_COUNTED = (*MADE, "cifar-10-jpeg")  # of which any number of images may be asked for

# What a folder of a kind holds, some of it.
_TELLING = {
    "cifar-10-jpeg": ("cifar10-jpeg-train.npz", "cifar10-jpeg-test.npz"),
    "cifar-10": ("cifar-10-batches-py", "cifar-10-batches-bin"),
    "cifar-100": ("cifar-100-python", "cifar-100-binary"),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "cub-200-2011": (cub.FOLDER, "train_test_split.txt"),
    "stanford-cars": ("cars_train", "cars_test", "car_ims"),
    "folder": ("train", "test"),
}
_READERS: dict[str, Callable[..., CoarseFineDataset]] = {
    "cifar-10": partial(cifar.CIFAR, classes=10),
    "cifar-100": partial(cifar.CIFAR, classes=100),
    "svhn": svhn.SVHN,
    "cub-200-2011": cub.CUB200,
    "stanford-cars": cars.StanfordCars,
}
#: Kinds whose images are cut to a size of the user's choice.
SIZED = ("cub-200-2011", "stanford-cars", "folder")


__all__ = [
    "KINDS", "MADE", "SIZED", "CoarseFineDataset", "cars", "cifar", "cifar_jpeg", "cub", "folder", "idx", "navon",
    "open_dataset", "svhn", "told_kind",
]  # fmt: skip


def told_kind(path: str | Path) -> str | None:
    """The kind of data in a folder, told by the names in it; None where they tell none, or the kind is Navon's."""
    found = (kind for kind, names in _TELLING.items() if any((Path(path) / name).exists() for name in names))
    return next(found, None)


def open_dataset(
    kind: str,
    path: str | Path | None,
    train: bool,
    images: int | None = None,
    *,
    like: Mapping[str, Any] | None = None,
    validation: int = 0,
    task: str = "both",
    **options: Any,
) -> CoarseFineDataset:
    """The data set of a kind.

    Args:
        kind: one of :data:`KINDS`.
        path: the folder that holds it; none is needed for ``"navon-sklearn"``. A ``"folder"`` holds ``train``, ``test``
            and, for two tasks, ``coarse.json``, the map from fine to coarse class names, without which each class is
            its own.
        train: the training part, with its augmentation, else the test part.
        images: number of Navon images, or of images read from ``"cifar-10-jpeg"`` archives.
        like: the ``description()`` of the data that a network was trained on, as its checkpoint keeps it. Images are
            then normalised as those were, unless ``options`` say how, and classes numbered as those were, by name.
            Without it the classes of a ``"folder"`` are those of its training part.
        validation: so many images of the training part, drawn at random, are held out: it is without them, and they,
            as they are without augmentation, are the test part. The published test images are then not read.
        task: "fine" alone needs no coarse classes, and a ``coarse.json`` is then not read.
        options: of the data set's class.

    Raises:
        UserError: the kind is unknown or has no number of images to choose, a path is missing, the files are damaged,
            a class is none that ``like`` has, or ``validation`` is of images that are made or leaves none.
    """
    if validation:
        training = open_dataset(kind, path, True, images, like=like, task=task, **options)
        return held_out(training, validation, train)
    if kind not in KINDS:
        raise UserError(f"unknown data kind {kind!r}; {expected(kind, KINDS)}")
    for key in options:
        if key not in _OPTIONS[kind]:
            raise UserError(f"unknown option {key!r} of {kind} data; {expected(key, _OPTIONS[kind])}")
    if images is not None and kind not in _COUNTED:
        raise UserError(f"{images} images of {kind} data were asked for; it is read whole, leave the number out")
    like = {} if like is None else like
    options = {**{key: like[key] for key in _NORMALISATION if key in like}, **options}
    classes = dict(like.get("classes", {}))
    if kind == "navon-sklearn":
        return navon.from_sklearn(train, images, **options)
    if path is None or not Path(path).is_dir():
        holds = "pictures as test/CLASS/*.jpg" if kind == "folder" else f"{kind} data"
        given = "; name one with --data" if path is None else ""
        raise UserError(f"data folder is {path}; expected an existing folder that holds {holds}{given}")
    if kind == "navon-idx":
        return navon.from_idx(path, train, images, **options)
    if kind == "folder":
        if "image_size" not in options:
            raise UserError("folder data needs image_size, in pixels, such as image_size=224")
        return _open_folder(Path(path), train, classes, options, task)
    dataset: CoarseFineDataset
    if kind == "cifar-10-jpeg":
        dataset = cifar_jpeg.CIFAR10Jpeg(path, train, images, **options)
    else:
        dataset = _READERS[kind](path, train, **options)
    two = task == "both"
    for task, own in dataset.class_names.items():
        wanted = [folder.same_name(name) for name in classes.get(task, own)]
        if wanted != [*own]:
            raise UserError(
                f"{kind} has the {f'{task} ' * two}classes {', '.join(own)}; the network was trained on "
                f"{', '.join(wanted)}"
            )
    return dataset


def _open_folder(
    path: Path, train: bool, classes: dict[str, Any], options: dict[str, Any], task: str
) -> CoarseFineDataset:
    note = None
    if not train and "fine" not in classes:
        classes["fine"] = list(folder.scan(path / "train")[0])
        if not classes["fine"]:
            note = f"{path}: classes are numbered as test has them, since neither a checkpoint nor train names them"
    part = path / ("train" if train else "test")
    coarse: Any = path / "coarse.json"
    if task == "fine" or not coarse.exists():
        coarse = {name: name for name in (*classes.get("fine", ()), *folder.scan(part)[0])}
    dataset = folder.ImageFolder(part, coarse, train=train, classes=classes, **options)
    if note is not None:
        dataset.notes = [*dataset.notes, note]
    return dataset
