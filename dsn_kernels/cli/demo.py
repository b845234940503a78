"""``dsn demo``: the shipped network on real handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dsn_models.checkpoints import write_atomically

from ..measure.demo import run_demo
from ..measure.report import render
from .common import (
    JsonOption,
    ThreadsOption,
    check_writable,
    console,
    load_model,
    mega,
    millis,
    open_test_data,
    percent,
    progress_bar,
    set_threads,
    write_json,
)

CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "dsn-navon-digits.safetensors"


def tables(document: dict[str, Any]) -> list[Table]:
    """What the network did, and what that cost."""
    work = Table(title=f"{document['model']}: {document['images']} handwritten test digits", show_header=False)
    for branch, what in (("coarse", "big digit"), ("fine", "small digit")):
        work.add_row(f"{branch} branch ({what})", "accuracy", percent(document["accuracy"][branch]))
        work.add_row("", "layers skipped", percent(document["skipped"][branch]))
    work.add_row("MACs per image", "dense", mega(document["macs_dense"]))
    work.add_row("", "executed", f"{mega(document['macs_executed'])} ({percent(document['macs_saved'])} saved)")
    same = "same gates as PyTorch" if document["reference"]["same_gates"] else "gates differ from PyTorch's"
    work.add_row("outputs", same, f"difference {document['reference']['relative_difference']:.0e}")
    time = Table(title=f"median ms per batch, {document['threads']} threads, {document['machine']['cpu']}")
    for column in ("batch", "dense (PyTorch)", "ours, every layer", "ours, skipping", "speed-up"):
        time.add_column(column, justify="right")
    for row in document["latency"]:
        cells = (millis(row[key]["median"]) for key in ("dense_ms", "open_ms", "skipping_ms"))
        time.add_row(str(row["batch"]), *cells, f"{row['speedup']:.1f}x")
    return [work, time]


def demo(
    report: Annotated[Path, typer.Option(help="HTML report to write.")] = Path("dsn-demo.html"),
    checkpoint: Annotated[Path, typer.Option(help="Another network trained on Navon digits.")] = CHECKPOINT,
    images: Annotated[int, typer.Option(min=64, help="Test digits to classify.")] = 500,
    seconds: Annotated[float, typer.Option(min=0, help="Of timing per contestant and batch size.")] = 1.0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Classify handwritten digits with the shipped network, and show what skipping layers saves."""
    check_writable(json)
    check_writable(report)
    set_threads(threads)
    model, metadata = load_model(str(checkpoint))
    dataset = open_test_data(model, metadata, "navon-sklearn", None, images)
    with progress_bar() as progress:
        task = progress.add_task("", total=1.0)
        run = run_demo(
            model,
            checkpoint.stem,
            dataset,
            seconds=seconds,
            on_step=lambda text, done: progress.update(task, description=text, completed=done, refresh=True),
        )
    write_atomically(report, render(run).encode())
    if json is not None:
        write_json({**run.document, "report": str(report)}, json)
        return
    out = console()
    for table in tables(run.document):
        out.print(table)
    out.print(f"report: {report}", soft_wrap=True)
