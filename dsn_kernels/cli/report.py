"""``dsn report``: what a checkpoint's gates do to a data set, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsn_models.checkpoints import write_atomically
from dsn_models.data import KINDS

from ..measure.model_report import report as measure
from .common import (
    JsonOption,
    ThreadsOption,
    check_writable,
    console,
    load_checkpoint,
    progress_bar,
    read_test_data,
    set_threads,
    write_json,
)


def report(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint written by dsn train.")],
    data: Annotated[Path | None, typer.Option(help="Folder that holds the data.")] = None,
    kind: Annotated[
        str | None, typer.Option(help=f"Of the data: {', '.join(KINDS)}; what it was trained on if not given.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Of a model with one task: coarse or fine.")] = None,
    images: Annotated[int, typer.Option(min=2, help="Test images.")] = 10_000,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("dsn-report.html"),
    sweep_steps: Annotated[int, typer.Option(min=0, help="Thresholds per branch of the sweep; 0 for none.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Of timing per contestant and batch size.")] = 1.0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """One HTML file: accuracy, layers skipped by class, gates, images, thresholds, latency and MACs."""
    check_writable(json)
    check_writable(out)
    set_threads(threads)
    model, metadata = load_checkpoint(checkpoint)
    test = read_test_data(model, metadata, kind, data, task, images)
    with progress_bar() as progress:
        bar = progress.add_task("", total=1.0)
        page, document = measure(
            model,
            Path(checkpoint).stem,
            test,
            sweep_steps=sweep_steps,
            seconds=seconds,
            on_step=lambda text, done: progress.update(bar, description=text, completed=done, refresh=True),
        )
    write_atomically(out, page.encode())
    if json is not None:
        write_json({**document, "report": str(out)}, json)
        return
    for line in document["notes"]:
        console(stderr=True).print(f"note: {line}", soft_wrap=True)
    console().print(f"report: {out}", soft_wrap=True)
