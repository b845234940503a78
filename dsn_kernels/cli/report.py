"""``dsn report``: what a checkpoint's gates do to a data set, as one HTML file."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer

from dsn_models import UserError
from dsn_models.checkpoints import write_atomically

from ..measure.baselines import BASELINES, check_known
from ..report.headlines import started_from
from ..report.report import Report
from ..report.report import report as measure
from .common import (
    IMAGES,
    MANY,
    ArchOption,
    CheckpointArgument,
    DataOption,
    JsonOption,
    KindOption,
    SecondsOption,
    TaskOption,
    ThreadsOption,
    ThresholdsOption,
    check_writable,
    console,
    set_threads,
    split,
    steps_shown,
    write_json,
)
from .inputs import load_checkpoint, read_test_data

PicturesOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Also every figure, as SVG and as PNG, in this folder.")
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the report in a browser.")]


def check_targets(html: Path, json: str | None, pictures: Path | None) -> None:
    """Refuses what cannot be written, before the work whose result it is to hold.

    Raises:
        UserError: a folder is missing or read-only, or a name is taken by something else.
    """
    check_writable(json, weights=False)
    check_writable(html, weights=False)
    if pictures is not None and pictures.exists() and not pictures.is_dir():
        raise UserError(f"{pictures} is a file; expected a folder for pictures")


def write_report(made: Report, html: Path, json: str | None, pictures: Path | None) -> None:
    """The page, its figures and its facts; tells of notes and files where no JSON is asked for."""
    write_atomically(html, made.page.encode(errors="backslashreplace"))
    if pictures is not None:
        for drawing in made.drawings:
            for kind in ("svg", "png"):
                write_atomically(pictures / f"{drawing.name}.{kind}", drawing.file(kind))
    if json is not None:
        write_json({**made.document, "report": str(html)}, json)
        return
    for line in made.document["headlines"]:
        console().print(line, soft_wrap=True)
    for line in made.document["notes"]:
        console(stderr=True).print(f"note: {line}", soft_wrap=True)
    console().print(f"report: {html}", soft_wrap=True)
    if pictures is not None:
        console().print(f"pictures: {pictures} ({2 * len(made.drawings)} files)", soft_wrap=True)


def open_in_browser(page: Path) -> None:
    """Shows a page.

    Raises:
        UserError: there is no browser.
    """
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        raise UserError(f"no browser found to open {page} with; copy it to where there is one") from None
    browser.open(page.absolute().as_uri())


def report(
    checkpoint: CheckpointArgument,
    arch: ArchOption = None,
    data: DataOption = None,
    kind: KindOption = None,
    task: TaskOption = None,
    images: Annotated[int, typer.Option("--images", "-n", min=2, max=MANY, help=IMAGES)] = 10_000,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="HTML file to write.")] = Path(
        "dsn-report.html"
    ),
    pictures: PicturesOption = None,
    thresholds: ThresholdsOption = 3,
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Also under other gates than its own.")
    ] = True,
    seconds: SecondsOption = 1.0,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help=f"Dense baselines beside eager PyTorch, of {', '.join(BASELINES)}; installed runtimes if not given.",
        ),
    ] = None,
    open_: OpenOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """One HTML file: accuracy, layers skipped by class, gates, images, features, thresholds, latency and MACs."""
    check_targets(out, json, pictures)
    others = None if against is None else split(against)
    check_known(others or ())
    set_threads(threads)
    model, metadata = load_checkpoint(checkpoint, arch)
    test = read_test_data(model, metadata, kind, data, task, images)
    with steps_shown() as show:
        options: dict[str, Any] = {"sweep_steps": thresholds, "seconds": seconds, "against": others}
        options |= {"controls": controls, "started": started_from(metadata)}
        made = measure(model, Path(checkpoint).stem, test, **options, on_step=show)
    write_report(made, out, json, pictures)
    if open_:
        open_in_browser(out)
