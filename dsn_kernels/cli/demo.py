"""``dsn demo``: the shipped network on real handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dsn_models import UserError

from ..measure.records import read, tasks_of
from ..report.headlines import started_from
from ..report.report import EAGER
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
        found = document["tasks"][branch]
        accuracy, opened = (percent(1 - found[key]["mean"]) for key in ("error", "open_error"))
        work.add_row(f"{branch} branch ({what})", "accuracy", f"{accuracy} ({opened} with all gates open)")
        work.add_row("", "layers skipped", percent(document["skipped"][branch]["mean"]))
    saved = document["macs_saved"]
    executed = mega(document["macs_executed"]["mean"])
    work.add_row("MACs per image", "executed", f"{executed} ({percent(saved['gates'])} saved by the gates)")
    work.add_row("", "all gates open", mega(document["macs_open"]))
    dense = mega(document["macs_dense"])
    work.add_row("", "dense network", f"{dense} ({percent(saved['fused'])} saved by fused and rearranged layers)")
    reference = document["reference"]
    gates = reference["same_gates"]
    same = "same gates as PyTorch" if gates == 1 else f"{100 * gates:.3f} % of the gates as PyTorch's"
    work.add_row("outputs", same, f"difference {reference['relative_difference']:.0e}")
    title = f"median ms per batch, {document['threads']} threads, {document['machine']['cpu']}"
    time = columned(title, ("batch", "own gates", "all gates open", "fastest dense", "kernels gain"))
    for row in document["latency"]:
        times = row["dense_ms"] if row["fastest"] == "dense" else row["baselines_ms"][row["fastest"]]
        fastest = EAGER if row["fastest"] == "dense" else row["fastest"]
        cells = (millis(row[key]["median"]) for key in ("skipping_ms", "open_ms"))
        time.add_row(str(row["batch"]), *cells, f"{millis(times['median'])} {fastest}", f"{row['kernels']:.2f}x")
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
        options: dict[str, Any] = {"against": None, "started": started_from(metadata)}
        made = measure(model, checkpoint.stem, digits, sweep_steps=0, seconds=seconds, on_step=show, **options)
    write_report(made, report, json, pictures)
    if json is None:
        for table in tables(made.document):
            console().print(table)
    if open_:
        open_in_browser(report)
