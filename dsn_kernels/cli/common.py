"""What the commands share: consoles, JSON output, models and data by name."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn

import dsn_models
from dsn_models import UserError, checkpoints
from dsn_models.data import KINDS, CoarseFineDataset, open_dataset
from dsn_models.training.recipe import DataSection

from ..measure import machine
from ..measure.bench import Images
from ..measure.records import Labelled, read, tasks_of

# A number beyond is a slip, and would only overflow somewhere further down.
MANY = 1_000_000
DAY = 86_400.0  # seconds
SEEDS = 2**32 - 1  # scikit-learn's largest


def finite(value: float) -> float:
    """Refuses NaN, which passes every comparison with a smallest and a largest value."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number that can be used here")
    return value


JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write JSON to a file or stdout instead of a table.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, max=1024, help="Threads; torch's own choice if not given.")]
SecondsOption = Annotated[
    float, typer.Option(min=0, max=DAY, callback=finite, help="Of timing per contestant and batch size.")
]
PinOption = Annotated[
    str | None, typer.Option(metavar="CORES", help="Stay on these cores, such as 0,2-3, with a thread on each.")
]

CheckpointArgument = Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint written by dsn train.")]
DataOption = Annotated[Path | None, typer.Option(help="Folder that holds the data.")]
KindOption = Annotated[
    str | None, typer.Option(help=f"Of the data: {', '.join(KINDS)}; what it was trained on if not given.")
]
TaskOption = Annotated[str | None, typer.Option(help="Of a model with one task: coarse or fine.")]

# A table that is piped keeps its columns; on a terminal rich knows the width.
_PIPED_WIDTH = 160


def console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # Names of files and classes are no markup, whatever brackets and colons they hold.
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    return Console(stderr=stderr, **plain, width=None if stream.isatty() else _PIPED_WIDTH)


def columned(title: str, columns: Iterable[str], left: Sequence[str] = (), caption: str | None = None) -> Table:
    """An empty table, its columns aligned to the right but for those of ``left``."""
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def progress_bar() -> Progress:
    """A bar on stderr that vanishes when done; nothing where stderr is no terminal.

    It is drawn only when told to (``update(..., refresh=True)``): a thread of its own would disturb what is timed.
    """
    stderr = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=stderr, transient=True, auto_refresh=False, disable=not stderr.is_terminal)


@contextmanager
def steps_shown() -> Iterator[Callable[[str, float], None]]:
    """While it is open, a bar; gives what to tell it: what is going on, and which part of that is done."""
    with progress_bar() as progress:
        bar = progress.add_task("", total=1.0)

        def show(text: str, done: float) -> None:
            progress.update(bar, description=text, completed=done, refresh=True)

        yield show


def set_threads(threads: int | None, pin: str | None = None) -> None:
    """Keeps to the cores of ``pin``, as many threads as those; ``threads`` overrides their number.

    Raises:
        UserError: ``pin`` names cores that this process may not use.
    """
    if pin is not None:
        machine.pin(pin)
    if threads is not None:
        torch.set_num_threads(threads)


def check_writable(target: str | Path | None, weights: bool = True) -> None:
    """Refuses a file that cannot be written, before the work whose result it is to hold.

    Raises:
        UserError: the folder is missing or read-only, the path is no regular file, or it is named as a checkpoint
            and is to hold no ``weights``.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    if not weights and path.suffix == ".safetensors":
        raise UserError(f"{path} is named as a checkpoint and would hold none; choose another name")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder or a device; expected a file name, or - for stdout")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: no folder {folder}; make it or choose another place")
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: folder {folder} is read-only; choose another place")


def write_json(document: dict[str, Any], target: str) -> None:
    """To stdout for ``-``, else to a file, beside and then renamed."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        checkpoints.write_atomically(Path(target), text.encode())


def split(text: str) -> list[str]:
    """``"1, 8"`` to ``["1", "8"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """``["gated=all", "segments=240,300,360"]`` to a configuration's fields: numbers, lists of numbers, words.

    Raises:
        UserError: one is not KEY=VALUE.
    """

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not (key and equals and text):
            raise UserError(f"option is {setting!r}; expected KEY=VALUE, such as gated=all")
        options[key] = tuple(value(part) for part in text.split(",")) if "," in text else value(text)
    return options


def load_model(
    source: str, seed: int = 0, options: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """A checkpoint's model and metadata, or a zoo model with random weights and ``{}``.

    Args:
        source: file or zoo name.
        seed: of random weights.
        options: of a zoo model's configuration.

    Raises:
        UserError: there is neither a file nor a zoo model of that name, the file is damaged, or it is given options.
    """
    if source in dsn_models.names() and not Path(source).exists():
        torch.manual_seed(seed)
        return dsn_models.create(source, **(options or {})).eval(), {}
    if options:
        raise UserError(f"options are for models of the zoo; {source} is none, a checkpoint has its own")
    if not Path(source).exists():
        raise UserError(f"no checkpoint at {source}; expected a file or one of {', '.join(dsn_models.names())}")
    return dsn_models.load(source), checkpoints.read_metadata(source)


def open_test_data(
    model: Any, metadata: dict[str, Any], kind: str | None, data: Path | None, images: int | None
) -> CoarseFineDataset:
    """The test part of the data that a checkpoint was trained on, or of another ``kind``, for ``model``.

    Images are normalised, and classes numbered, as those that the network was trained on. What the data has to say of
    itself goes to stderr, a line each.

    Raises:
        UserError: no kind is given or known, or the data cannot be read.
    """
    section: dict[str, Any] = {}
    if "recipe" in metadata:  # only its data matters here; the rest may be in the words of another version
        try:
            section = DataSection.model_validate(metadata["recipe"]["data"]).model_dump()
        except (KeyError, TypeError, ValueError):
            raise UserError("the checkpoint's recipe does not say what data it needs; choose with --kind") from None
    if kind is None and not section:
        raise UserError("the checkpoint does not say what it was trained on; choose with --kind")
    options: dict[str, Any] = {}
    if section and kind in (None, section["kind"]):
        options = {**section["options"], "images": section["test_images"]}
    if images is not None:
        options["images"] = images
    kind = kind or section["kind"]
    if kind == "folder":
        options.setdefault("image_size", model.config.image_size)
    dataset = open_dataset(kind, data, False, like=_trained_on(metadata), **options)
    for note in dataset.notes:
        console(stderr=True).print(f"note: {note}", soft_wrap=True, markup=False)
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
        return None
    dataset = open_test_data(model, metadata, kind, data, None)
    if len(dataset) == 0:
        raise UserError("the test data is empty; expected at least one image")
    return lambda batch, n: dataset.batch(torch.arange(n * batch, (n + 1) * batch) % len(dataset))[0]


def load_checkpoint(source: str) -> tuple[nn.Module, dict[str, Any]]:
    """A checkpoint's model and metadata.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not Path(source).exists():
        raise UserError(f"no checkpoint at {source}; expected a file written by dsn train")
    return load_model(source)


def resolve_task(model: Any, metadata: dict[str, Any], task: str | None) -> str:
    """ "both" of a network of two branches, else "coarse" or "fine": the one given, or trained on, or the coarse one.

    Raises:
        UserError: the model does not have that task.
    """
    tasks = tasks_of(model)
    task = task or metadata.get("recipe", {}).get("task") or tasks[0]
    if task not in tasks:
        raise UserError(f"task is {task!r}; expected {' or '.join(tasks)} for this model")
    return task


def check_classes(model: Any, dataset: CoarseFineDataset, task: str) -> None:
    """Refuses data of other classes than the model's.

    Raises:
        UserError: the number of classes of a task differs.
    """
    has = {"coarse": dataset.coarse_classes, "fine": dataset.fine_classes}
    wanted = dict(zip(has, model.config.classes, strict=True)) if task == "both" else {task: model.config.classes}
    for name, count in wanted.items():
        if count != has[name]:
            fitting = [other for other in has if task != "both" and has[other] == count]
            todo = f"choose --task {fitting[0]}" if fitting else "choose other data"
            raise UserError(f"the model has {count} {name} classes, the data {has[name]}; {todo}")


def read_test_data(
    model: Any, metadata: dict[str, Any], kind: str | None, data: Path | None, task: str | None, images: int
) -> Labelled:
    """Up to ``images`` images of the test data, spread evenly over it, with the labels of the model's task or tasks.

    Raises:
        UserError: as :func:`open_test_data`; or the data is empty, or of other classes than the model's.
    """
    task = resolve_task(model, metadata, task)
    dataset = open_test_data(model, metadata, kind, data, None)
    check_classes(model, dataset, task)
    return read(dataset, task, images)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def millis(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def mega(macs: float) -> str:
    return f"{macs / 1e6:.2f} M"
