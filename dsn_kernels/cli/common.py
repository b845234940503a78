"""What the commands share: options, consoles, tables, files that are written."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dsn_models import UserError, checkpoints
from dsn_models.data import KINDS

from ..measure import machine

# A number beyond is a slip, and would only overflow somewhere further down.
MANY = 1_000_000
DAY = 86_400.0  # seconds
SEEDS = 2**32 - 1  # scikit-learn's largest

ASSETS = Path(__file__).resolve().parent.parent / "assets"

# One meaning for an option, whichever command has it.
BATCH = "Images at a time."
THRESHOLDS = "Thresholds tried, of each task's gates."
IMAGES = "Test images to use, spread evenly over them; all if not given."


def finite(value: float) -> float:
    """Refuses NaN, which passes every comparison with a smallest and a largest value."""
    if math.isnan(value):
        raise typer.BadParameter("nan is not a number that can be used here")
    return value


JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON to a file, or to stdout for -, instead of a table."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", "-t", min=1, max=1024, help="Threads; torch's own choice if not given.")
]
SecondsOption = Annotated[
    float, typer.Option(min=0, max=DAY, callback=finite, help="Of timing per contestant and batch size.")
]
PinOption = Annotated[
    str | None, typer.Option(metavar="CORES", help="Stay on these cores, such as 0,2-3, with a thread on each.")
]

CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CKPT", help="A checkpoint written by dsn train or dsn gate.")
]
ArchOption = Annotated[
    str | None,
    typer.Option(
        "--arch",
        envvar="DSN_ARCH",
        metavar="PKG.MODULE:FUNCTION",
        help="What may construct the network of a checkpoint of dsn gate; several with commas.",
    ),
]
DataOption = Annotated[Path | None, typer.Option("--data", "-d", metavar="DIR", help="Folder that holds the data.")]
BatchOption = Annotated[int, typer.Option("--batch", "-b", min=1, max=MANY, help=BATCH)]
ThresholdsOption = Annotated[int, typer.Option(min=0, max=100, help=f"{THRESHOLDS[:-1]}; 0 for none.")]
ImagesOption = Annotated[int | None, typer.Option("--images", "-n", min=1, max=MANY, help=IMAGES)]
KindOption = Annotated[
    str | None,
    typer.Option(metavar="KIND", help=f"Of the data: {', '.join(KINDS)}; what it was trained on if not given."),
]
TaskOption = Annotated[
    str | None, typer.Option(metavar="coarse|fine", help="Of a model with one task, where the data has two.")
]

# A table that is piped keeps its columns; on a terminal rich knows the width.
_PIPED_WIDTH = 160


def console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # Names of files and classes are no markup, whatever brackets and colons they hold.
    plain: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
    return Console(stderr=stderr, **plain, width=None if stream.isatty() else _PIPED_WIDTH)


def columned(title: str, columns: Iterable[str], left: Sequence[str] = (), caption: str | None = None) -> Table:
    """An empty table, at least as wide as its title; columns but those of ``left`` are aligned to the right."""
    table = Table(title=title, caption=caption, min_width=cell_len(title))
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
        UserError: the folder is read-only or cannot be made, the path is no regular file, or it is named as a
            checkpoint and is to hold no ``weights``.
    """
    if target is None or target == "-":
        return
    path = Path(target)
    if not weights and path.suffix == ".safetensors":
        raise UserError(f"{path} is named as a checkpoint and would hold none; choose another name")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder or a device; expected a file name, or - for stdout")
    folder = next(parent for parent in path.absolute().parents if parent.exists())  # the others are made
    if not folder.is_dir():
        raise UserError(f"cannot write {path}: {folder} is a file; choose another place")
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


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def millis(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def mega(macs: float) -> str:
    return f"{macs / 1e6:.2f} M"
