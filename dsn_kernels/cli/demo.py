"""``dsn demo``: the shipped network on real handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dsn_models import UserError

from ..measure.records import read, tasks_of
from ..report.report import report as measure
from .common import (
    ASSETS,
    MANY,
    JsonOption,
    SecondsOption,
    ThreadsOption,
    columned,
    console,
    mega,
    millis,
    percent,
    set_threads,
    steps_shown,
)
from .evaluate import controls_tables
from .inputs import load_model, open_test_data
from .report import OpenOption, PicturesOption, check_targets, open_in_browser, write_report

CHECKPOINT = ASSETS / "dsn-navon-digits.safetensors"
_BRANCHES = {"coarse": "big digit", "fine": "small digit"}


def tables(document: dict[str, Any]) -> list[Table]:
    """What the network did, for whom its gates opened, and what that cost."""
    work = Table(title=f"{document['model']}: {document['images']} handwritten test digits", show_header=False)
    for branch, what in _BRANCHES.items():
        accuracy = 1 - document["tasks"][branch]["error"]["mean"]
        work.add_row(f"{branch} branch ({what})", "accuracy", percent(accuracy))
        work.add_row("", "layers skipped", percent(document["skipped"][branch]["mean"]))
    work.add_row("MACs per image", "dense", mega(document["macs_dense"]))
    saved = document["macs_saved"]
    opened, executed = mega(document["macs_open"]), mega(document["macs_executed"]["mean"])
    work.add_row("", "every layer", f"{opened} ({percent(saved['fused'])} saved by fused and rearranged layers)")
    work.add_row("", "executed", f"{executed} ({percent(saved['gates'])} of these saved by the gates)")
    reference = document["reference"]
    gates = reference["same_gates"]
    same = "same gates as PyTorch" if gates == 1 else f"{100 * gates:.3f} % of the gates as PyTorch's"
    work.add_row("outputs", same, f"difference {reference['relative_difference']:.0e}")
    title = f"median ms per batch, {document['threads']} threads, {document['machine']['cpu']}"
    time = columned(title, ("batch", "dense (PyTorch)", "ours, every layer", "ours, skipping", "speed-up"))
    for row in document["latency"]:
        cells = (millis(row[key]["median"]) for key in ("dense_ms", "open_ms", "skipping_ms"))
        time.add_row(str(row["batch"]), *cells, f"{row['speedup']:.1f}x")
    return [work, *controls_tables(document["controls"])[0], time]


def demo(
    report: Annotated[Path, typer.Option(help="HTML report to write.")] = Path("dsn-demo.html"),
    checkpoint: Annotated[Path, typer.Option(help="Another network trained on Navon digits.")] = CHECKPOINT,
    images: Annotated[int, typer.Option("--images", "-n", min=64, max=MANY, help="Test images to use.")] = 500,
    seconds: SecondsOption = 1.0,
    pictures: PicturesOption = None,
    open_: OpenOption = False,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Classify handwritten digits with the shipped network, and show what skipping layers saves."""
    check_targets(report, json, pictures)
    set_threads(threads)
    model, metadata = load_model(str(checkpoint))
    (task, *_) = tasks_of(model)
    if task != "both":
        raise UserError(
            f"{checkpoint} has one branch; expected a dual skipping network, for the big and the small digit"
        )
    dataset = open_test_data(model, metadata, "navon-sklearn", None, images)
    with steps_shown() as show:
        show("making images", 0.0)
        digits = read(dataset, task)
        made = measure(model, checkpoint.stem, digits, sweep_steps=0, seconds=seconds, on_step=show)
    if json is None:
        for table in tables(made.document):
            console().print(table)
    write_report(made, report, json, pictures)
    if open_:
        open_in_browser(report)
