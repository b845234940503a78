"""Models and data by name, as the commands are given them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dsn_models
from dsn_models import UserError, checkpoints
from dsn_models.data import MADE, SIZED, CoarseFineDataset, open_dataset, told_kind
from dsn_models.data.held_out import Part
from dsn_models.errors import expected

from ..measure.bench import Images
from ..measure.records import Labelled, read, tasks_of
from .common import console, split


def load_model(
    source: str, seed: int = 0, options: Mapping[str, Any] | None = None, arch: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A checkpoint's model and metadata, or a zoo model with random weights and ``{}``.

    Args:
        source: file or zoo name.
        seed: of random weights.
        options: of a zoo model's configuration.
        arch: constructors that a checkpoint may have imported, with commas between them.

    Raises:
        UserError: there is neither a file nor a zoo model of that name, the file is damaged, or it is given options.
    """
    if source in dsn_models.names() and not Path(source).exists():
        torch.manual_seed(seed)
        return dsn_models.create(source, **(options or {})).eval(), {}
    if options:
        raise UserError(f"options are for models of the zoo; {source} is none, a checkpoint has its own")
    if not Path(source).exists():
        raise UserError(f"no checkpoint at {source}; {expected(source, dsn_models.names(), 'a file or ')}")
    import_from_here()
    return dsn_models.load(source, split(arch or "")), checkpoints.read_metadata(source)


def import_from_here() -> None:
    """Lets a constructor that the user names lie in the working folder, behind whatever is installed."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def open_test_data(
    model: Any,
    metadata: dict[str, Any],
    kind: str | None,
    data: Path | None,
    images: int | None,
    task: str | None = None,
    resize: int | str | None = None,
) -> CoarseFineDataset:
    """The test part of the data that a checkpoint was trained on, or of another ``kind``, for ``model``.

    ``images`` of them are taken, spread evenly, or made. Images are normalised, and classes numbered, as those that the
    network was trained on. What the data has to say of itself goes to stderr, a line each. ``resize``: of images in
    files, in place of what the checkpoint says.

    Raises:
        UserError: no kind is given or known, the data cannot be read, or its images are not of a size to choose.
    """
    from dsn_models.training.recipe import DataSection  # here, because --help needs no recipe and no pydantic

    section: dict[str, Any] = {}
    if "recipe" in metadata:  # only its data matters here; the rest may be in the words of another version
        try:
            section = DataSection.model_validate(metadata["recipe"]["data"]).model_dump()
        except (KeyError, TypeError, ValueError):
            raise UserError("the checkpoint's recipe does not say what data it needs; choose with --kind") from None
    if kind is None and not section and data is not None and data.is_dir():
        kind = told_kind(data)
    if kind is None and not section:
        raise UserError("the checkpoint does not say what it was trained on; choose with --kind")
    options: dict[str, Any] = {}
    if section and kind in (None, section["kind"]):
        options = {**section["options"], "images": section["test_images"]}
    kind = kind or section["kind"]
    if images is not None and kind in MADE:
        options["images"] = images
    if kind in SIZED:
        options.setdefault("image_size", model.config.image_size)
        options |= {} if resize is None else {"resize": resize}
    elif resize is not None:
        raise UserError(f"--resize is for images in files; {kind} data has a size of its own, leave it out")
    one = "both" if isinstance(model.config.classes, tuple) else task or metadata.get("recipe", {}).get("task", "fine")
    dataset = open_dataset(kind, data, False, like=_trained_on(metadata), task=one, **options)
    for note in dataset.notes:
        console(stderr=True).print(f"note: {note}", soft_wrap=True, markup=False)
    if images is not None and images < len(dataset):
        return Part(dataset, torch.arange(images) * len(dataset) // images)
    return dataset


def _trained_on(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the data that it was trained on.

    Raises:
        UserError: it says so in another form.
    """
    found = metadata.get("data", {})
    classes = found.get("classes", {}) if isinstance(found, dict) else None
    named = isinstance(classes, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in classes.values()
    )
    if not named:
        raise UserError(f"the checkpoint says of its data {found!r}; expected classes by task, mean and std")
    return found


def test_images(model: Any, metadata: dict[str, Any], kind: str | None, data: Path | None) -> Images | None:
    """Batches of the test data where a checkpoint or the user names some, else None.

    Raises:
        UserError: as :func:`open_test_data`, or the data is empty.
    """
    if kind is None and data is None and metadata.get("recipe", {}).get("data", {}).get("kind") != "navon-sklearn":
        model.preprocess = None  # noise is no image, and nothing is to be said of its values
        return None
    dataset = open_test_data(model, metadata, kind, data, None)
    if len(dataset) == 0:
        raise UserError("the test data is empty; expected at least one image")
    return lambda batch, n: dataset.batch(torch.arange(n * batch, (n + 1) * batch) % len(dataset))[0]


def load_checkpoint(source: str, arch: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """A checkpoint's model and metadata.

    Args:
        source: file.
        arch: constructors that it may have imported, with commas between them.

    Raises:
        UserError: there is no such file, it is damaged, or its constructor is not among ``arch``.
    """
    if not Path(source).exists():
        near = sorted(str(path) for path in Path(source).parent.glob("*.safetensors"))
        whole = f"{source}.safetensors"
        told = (
            f"near it: {whole}"
            if whole in near
            else expected(source, near)
            if near
            else "expected a file written by dsn train or dsn gate"
        )
        raise UserError(f"no checkpoint at {source}; {told}")
    return load_model(source, arch=arch)


def resolve_task(model: Any, metadata: dict[str, Any], task: str | None, dataset: CoarseFineDataset) -> str:
    """ "both" of a network of two branches, else "coarse" or "fine": the one given, or trained on, or the one of which
    the data has as many classes as the network.

    Raises:
        UserError: the model does not have that task, or the data no task of as many classes.
    """
    tasks = tasks_of(model)
    if task is not None and task not in tasks:
        todo = "leave --task out, the network has two tasks" if tasks == ("both",) else f"expected {' or '.join(tasks)}"
        raise UserError(f"task is {task!r}; {todo}")
    has = {"coarse": dataset.coarse_classes, "fine": dataset.fine_classes}
    if tasks == ("both",):
        check_classes(dict(zip(has, model.config.classes, strict=True)), has)
        return "both"
    wanted = model.config.classes
    known = task or metadata.get("recipe", {}).get("task")
    if known not in has:  # neither given nor told by a recipe
        known = next((name for name in ("fine", "coarse") if has[name] == wanted), "fine")
    if has[known] != wanted:
        other = [name for name in has if has[name] == wanted]
        todo = f"choose --task {other[0]}" if other else "choose data of as many classes, as it was trained on"
        which = f" {known}" if other else ""
        raise UserError(f"the model has {wanted}{which} classes, the data {has[known]}; {todo}")
    return str(known)


def check_classes(wanted: dict[str, int], has: dict[str, int]) -> None:
    """Refuses data of other classes than those of a model of two tasks.

    Raises:
        UserError: the number of classes of a task differs.
    """
    for name, count in wanted.items():
        if count != has[name]:
            raise UserError(f"the model has {count} {name} classes, the data {has[name]}; choose other data")


def read_test_data(
    model: Any, metadata: dict[str, Any], kind: str | None, data: Path | None, task: str | None, images: int
) -> Labelled:
    """Up to ``images`` images of the test data, spread evenly over it, with the labels of the model's task or tasks.

    Raises:
        UserError: as :func:`open_test_data`; or the data is empty, or of other classes than the model's.
    """
    dataset = open_test_data(model, metadata, kind, data, None, task)
    task = resolve_task(model, metadata, task, dataset)
    return read(dataset, task, images)
