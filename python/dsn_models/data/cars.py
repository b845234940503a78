"""Stanford Cars (Krause et al., 2013): 196 models, 7 types, in the MATLAB files that are published.

Dual Skipping Networks names its 7 coarse classes and leaves the assignment to "the basic car types". The type of a
model follows here from the last word of its name that tells one; cabs are pickups. Our reading: vans and minivans,
which are none of the seven, go with the wagons, and models whose names tell no type have theirs in a list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .listed import ListedImages
from .matlab import read_matlab

TYPES = ("Convertible", "Coupe", "Hatchback", "Pickup", "SUV", "Sedan", "Wagon")
_WORDS = {
    **{name: name for name in TYPES if name != "Pickup"},
    "Cab": "Pickup",
    "SuperCab": "Pickup",
    "Van": "Wagon",
    "Minivan": "Wagon",
}
_UNNAMED = {
    "Acura Integra Type R": "Coupe",
    "Acura TL Type-S": "Sedan",
    "Buick Regal GS": "Sedan",
    "Chevrolet Cobalt SS": "Coupe",
    "Chevrolet Corvette Ron Fellows Edition Z06": "Coupe",
    "Chevrolet Corvette ZR1": "Coupe",
    "Chevrolet HHR SS": "Wagon",
    "Chevrolet TrailBlazer SS": "SUV",
    "Chrysler 300 SRT-8": "Sedan",
    "Dodge Challenger SRT8": "Coupe",
    "Dodge Charger SRT-8": "Sedan",
    "FIAT 500 Abarth": "Hatchback",
    "Jaguar XK XKR": "Coupe",
    "Lamborghini Gallardo LP 570-4 Superleggera": "Coupe",
}


def type_of(model: str) -> str:
    """The type of a class such as ``"Tesla Model S Sedan 2012"``.

    Raises:
        UserError: the name tells none and is not in the list.
    """
    name = model.rpartition(" ")[0]
    told = [_WORDS[word] for word in name.split() if word in _WORDS]
    if not told and name not in _UNNAMED:
        raise UserError(f"class {model!r} is no model of Stanford Cars, whose type is known")
    return told[-1] if told else _UNNAMED[name]


def _column(rows: np.ndarray, field: str, path: Path) -> list[Any]:
    if rows.dtype.names is None or field not in rows.dtype.names:
        raise UserError(f"{path}: annotations have no {field!r}; download it again")
    return [value.item() if isinstance(value, np.ndarray | np.generic) else value for value in rows[field]]


def _find(root: Path, *places: str) -> Path | None:
    return next((root / place for place in places if (root / place).is_file()), None)


def _read(root: Path, train: bool) -> tuple[Path, list[str], list[str], list[int]]:
    """The file of annotations, names of the classes, and of each image its path and class, from 1 on."""
    whole = _find(root, "cars_annos.mat")
    if whole is not None:  # the first form: one list, one folder
        content = read_matlab(whole, ("annotations", "class_names"))
        rows = np.atleast_1d(content["annotations"])
        tests = _column(rows, "test", whole)
        chosen = [i for i, test in enumerate(tests) if bool(test) != train]
        paths, classes = _column(rows, "relative_im_path", whole), _column(rows, "class", whole)
        names = [str(name) for name in np.atleast_1d(content["class_names"])]
        return whole, names, [str(paths[i]) for i in chosen], [classes[i] for i in chosen]
    part, file = ("train", "cars_train_annos.mat") if train else ("test", "cars_test_annos_withlabels.mat")
    meta = _find(root, "devkit/cars_meta.mat", "cars_meta.mat")
    annotations = _find(root, f"devkit/{file}", file)
    if meta is None or annotations is None:
        wanted = "cars_meta.mat" if meta is None else file
        raise UserError(f"no {wanted} in {root} or its devkit, and no cars_annos.mat; expected Stanford Cars unpacked")
    names = [str(name) for name in np.atleast_1d(read_matlab(meta, ("class_names",))["class_names"])]
    rows = np.atleast_1d(read_matlab(annotations, ("annotations",))["annotations"])
    files = [f"cars_{part}/{name}" for name in _column(rows, "fname", annotations)]
    return annotations, names, files, _column(rows, "class", annotations)


class StanfordCars(ListedImages):
    """Images of Stanford Cars with model and type, cut and augmented as :class:`.listed.ListedImages` says.

    Args:
        root: holds ``cars_train``, ``cars_test`` and ``devkit`` with ``cars_meta.mat``, ``cars_train_annos.mat`` and
            ``cars_test_annos_withlabels.mat``; or, in the first form, ``car_ims`` and ``cars_annos.mat``.
        train: the 8,144 training images, else the 8,041 test images.
        image_size: pixels.
        options: of :class:`.listed.ListedImages`.

    Raises:
        UserError: a file is missing, damaged or cut short, or :class:`.listed.ListedImages` refuses.
    """

    def __init__(self, root: str | Path, train: bool, *, image_size: int = 360, **options: Any) -> None:
        root = Path(root)
        path, models, files, classes = _read(root, train)
        for number in classes:
            if not isinstance(number, int) or not 1 <= number <= len(models):
                raise UserError(f"{path} holds the class {number!r}; expected 1 to {len(models)}: download it again")
        if not files:
            raise UserError(f"{path} has no {'training' if train else 'test'} image; download it again")
        types = [type_of(model) for model in models]
        coarse = sorted(set(types))
        listed = [(root / name, number - 1) for name, number in zip(files, classes, strict=True)]
        coarse_of = torch.tensor([coarse.index(name) for name in types])
        super().__init__(listed, coarse_of, image_size, train, **options)
        self.class_names = {"coarse": coarse, "fine": models}
        self.coarse_classes, self.fine_classes = len(coarse), len(models)
