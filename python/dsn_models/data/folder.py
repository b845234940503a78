"""A folder of images, one sub-folder per fine class, with a map from fine to coarse classes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

import torch

from ..errors import UserError
from ..lettering import shortened
from .images import SUFFIXES
from .listed import ListedImages

_NAMED = 5  # classes that a note names before it counts


def same_name(name: str) -> str:
    """Class names that look alike are alike: Unicode's normalisation form C, since file systems differ in theirs."""
    return normalize("NFC", name)


def read_coarse_map(path: str | Path) -> dict[str, str]:
    """A JSON object that gives each fine class's folder name its coarse class's name.

    Raises:
        UserError: the file is missing, is no such object, or gives one class two names.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}); expected JSON such as {{"sparrow": "bird"}}') from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UserError(f'{path} is no coarse-label map; expected JSON such as {{"sparrow": "bird"}}')
    return _normalised(content, str(path))


def _normalised(coarse_map: Mapping[str, str], source: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, coarse in coarse_map.items():
        if found.setdefault(same_name(name), same_name(coarse)) != same_name(coarse):
            raise UserError(f"{source} gives class {same_name(name)!r} two coarse classes; keep one")
    return found


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")  # among them the ._* that macOS leaves on foreign disks


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(repr(shortened(name)) for name in names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def scan(root: str | Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The images of ``root/CLASS/*`` by class, and a note on what else is there.

    Hidden files and folders are no data. Folders whose names look alike are one class, and one without images is none.
    """
    root = Path(root)
    images: dict[str, list[Path]] = {}
    folders = files = 0
    empty = []
    for entry in sorted(root.iterdir()) if root.is_dir() else []:
        if _hidden(entry):
            continue
        if not entry.is_dir():
            files += 1
            continue
        found = []
        for path in sorted(entry.iterdir()):
            if _hidden(path):
                continue
            if path.is_dir():
                folders += 1
            elif path.suffix.lower() in SUFFIXES and path.is_file():
                found.append(path)
            else:
                files += 1
        if found:
            images.setdefault(same_name(entry.name), []).extend(found)
        else:
            empty.append(entry.name)
    parts = []
    if files:
        parts.append(_count(files, "file that is no image of a class", "files that are no images of a class"))
    if folders:
        parts.append(_count(folders, "folder inside a class", "folders inside classes"))
    if empty:
        parts.append(f"{_count(len(empty), 'folder', 'folders')} without images ({_listed(empty)})")
    return dict(sorted(images.items())), [f"{root}: skipped {', '.join(parts)}"] if parts else []


class ImageFolder(ListedImages):
    """Images of ``root/CLASS/*``, read, cut and augmented as those of :class:`.listed.ListedImages`.

    Args:
        root: one sub-folder per fine class; see :func:`scan`.
        coarse_map: fine class name to coarse class name, or the JSON file that holds it.
        image_size: pixels.
        train: augment.
        classes: by task, the names of the classes in the order in which they are numbered, such as a checkpoint's. A
            class of them without images is a note. Where not given, the classes are those that are here, in the order
            of their names.
        options: ``augment``, ``resize``, ``mean``, ``std`` and ``seed`` of :class:`.listed.ListedImages`.

    Raises:
        UserError: there is no image, a class is missing from the map or is none of ``classes``, or
            :class:`.listed.ListedImages` refuses.
    """

    def __init__(
        self,
        root: str | Path,
        coarse_map: Mapping[str, str] | str | Path,
        image_size: int,
        train: bool,
        *,
        classes: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> None:
        root = Path(root)
        if isinstance(coarse_map, Mapping):
            coarse_map = _normalised(coarse_map, "the coarse-label map")
        else:
            coarse_map = read_coarse_map(coarse_map)
        images, notes = scan(root)
        if not images:
            raise UserError(f"no image in {root}; expected sub-folders of images, one per class")
        known = {task: [same_name(name) for name in names] for task, names in (classes or {}).items()}
        fine = known.get("fine") or list(images)
        _refuse_unknown(images, fine, "fine", root)
        unknown = [name for name in images if name not in coarse_map]
        if unknown:
            raise UserError(f"class {unknown[0]!r} of {root} is not in the coarse-label map; add it")
        coarse = known.get("coarse") or sorted({coarse_map[name] for name in fine if name in coarse_map})
        _refuse_unknown([coarse_map[name] for name in images], coarse, "coarse", root)
        missing = [name for name in fine if name not in images]
        if missing:
            notes.append(f"{root}: no image of {len(missing)} of the {len(fine)} classes, {_listed(missing)}")
        self.notes = notes
        self.class_names = {"coarse": coarse, "fine": fine}
        self.coarse_classes, self.fine_classes = len(coarse), len(fine)
        # A class that the map leaves out has no coarse class, and no image here that asks for one.
        coarse_of = torch.tensor([coarse.index(coarse_map[n]) if coarse_map.get(n) in coarse else -1 for n in fine])
        files = [(path, fine.index(name)) for name, paths in images.items() for path in paths]
        super().__init__(sorted(files, key=lambda file: file[1]), coarse_of, image_size, train, **options)


def _refuse_unknown(found: Iterable[str], known: Sequence[str], task: str, root: Path) -> None:
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            of = f", near {near[0]!r}" if near else f", which are {_listed(known)}"
            raise UserError(
                f"{task} class {name!r} of {root} is none of the {len(known)} that were trained on{of}; "
                "rename or remove its folder"
            )
