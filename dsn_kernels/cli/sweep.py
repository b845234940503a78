"""``dsn sweep``: gate thresholds against accuracy, MACs and latency, and the thresholds that keep a budget."""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import dsn_models
from dsn_models import UserError
from dsn_models.checkpoints import write_atomically

from ..report.plots import check_picture, picture, sweep_figure
from ..tuning.budget import TOLERANCE, Budget
from ..tuning.operating_point import set_operating_point
from ..tuning.sweep import sweep as measure
from ..tuning.sweeper import SweepSettings
from .common import (
    DAY,
    IMAGES,
    MANY,
    SEEDS,
    THRESHOLDS,
    ArchOption,
    BatchOption,
    CheckpointArgument,
    DataOption,
    JsonOption,
    KindOption,
    TaskOption,
    ThreadsOption,
    check_writable,
    columned,
    console,
    finite,
    mega,
    millis,
    percent,
    set_threads,
    steps_shown,
    write_json,
)
from .inputs import load_checkpoint, read_test_data


def _thresholds(thresholds: dict[str, float] | None) -> str:
    return "all open" if thresholds is None else ", ".join(f"{name} {t:.3g}" for name, t in thresholds.items())


def front_table(document: dict[str, Any]) -> Table:
    """The Pareto front, from all gates open to the fewest MACs; accuracy with its 95 % confidence interval."""
    images = document["images"]["pick"]
    batch = document["latency"]["batch"]
    title = f"{document['model']}: accuracy against MACs on {images} images; latency of batch {batch}"
    tasks = list(document["open"]["error"])
    columns = (
        "thresholds",
        *(f"{task} accuracy" if len(tasks) > 1 else "accuracy" for task in tasks),
        "skipped",
        "MACs",
        "of dense",
        "latency",
    )
    table = columned(title, columns, ("thresholds",))
    for point in (document["open"], *(document["points"][i] for i in reversed(document["front"]))):
        errors = [point["error"][task] for task in tasks]
        table.add_row(
            _thresholds(point["thresholds"]),
            *(f"{percent(1 - e['mean'])} ({100 - 100 * e['high']:.1f} to {100 - 100 * e['low']:.1f})" for e in errors),
            " / ".join(percent(skipped["mean"]) for skipped in point["skipped"].values()),
            mega(point["macs"]["mean"]),
            percent(point["macs_fraction"]),
            f"{millis(point['latency_ms']['mean'])} ms",
        )
    return table


def pick_lines(picked: dict[str, Any]) -> list[str]:
    """What was picked, and what it did to fresh images."""
    scale, unit = {"latency": (1, " ms"), "macs": (100, " % of dense"), "error": (-100, " points")}[picked["kind"]]
    word = "accuracy" if picked["kind"] == "error" else picked["kind"]
    check, limit = picked["check"], scale * picked["limit"]
    found, fresh = scale * picked["pick"]["cost"], scale * check["cost"]
    layers = picked["layer_thresholds"] is not None
    lines = [
        f"budget {picked['budget']}: {'a threshold per layer' if layers else _thresholds(picked['thresholds'])}",
        f"{word} {found:.3g}{unit} where it was picked, {fresh:.3g}{unit} on fresh images, "
        f"of {limit:.3g}{unit}: {'kept' if picked['kept'] else 'NOT KEPT'}",
        f"{'mean ' * (len(picked['thresholds']) > 1)}accuracy on fresh images {percent(1 - check['mean_error'])}, "
        f"{percent(1 - picked['check_open_error'])} with all gates open",
    ]
    if picked["pick"]["cost"] < (1 - TOLERANCE) * picked["limit"] and picked["kind"] != "error":
        beyond = picked["next_better"]
        nearer = f"the nearest that is right more often is {word}={beyond}" if beyond else "no more is needed"
        lines.append(f"no thresholds are better between {found:.3g}{unit} and the budget; {nearer}")
    return lines


def _beside(checkpoint: str, budget: str) -> Path:
    """Beside a checkpoint, a name that tells the budget; with a number behind it where that is taken."""
    told = re.sub(r"[^\w.+]+", "-", budget).strip("-")
    stem = f"{Path(checkpoint).stem}-{told}"
    stems = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    names = (Path(checkpoint).with_name(f"{name}.safetensors") for name in stems)
    return next(name for name in names if not name.exists())


def sweep(
    checkpoint: CheckpointArgument,
    arch: ArchOption = None,
    data: DataOption = None,
    kind: KindOption = None,
    task: TaskOption = None,
    images: Annotated[
        int, typer.Option("--images", "-n", min=4, max=MANY, help=f"{IMAGES[:-1]}; half of them pick, half check.")
    ] = 2000,
    thresholds: Annotated[int, typer.Option(min=1, max=100, help=THRESHOLDS)] = 7,
    batch: BatchOption = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="BUDGET",
            help="latency=2ms, latency=0.8 (of its own), macs=60% (of dense) or accuracy=-0.5pt (of all open).",
        ),
    ] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Search a threshold of each layer anyway.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Checkpoint for the picked thresholds; CKPT's name with the budget in it if not given."
        ),
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write the picked thresholds into CKPT itself.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Curves, as .svg, .png or .pdf.")] = None,
    seconds: Annotated[float, typer.Option(min=0, max=DAY, callback=finite, help="Of timing per point.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS, help="Of the split and the timing.")] = 0,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Gate thresholds against accuracy, layers skipped, MACs and latency; with --budget, picks and keeps the best."""
    for target in (json, plot, out):
        check_writable(target)
    if plot is not None:
        check_picture(plot.suffix.removeprefix("."))
    wanted = None if budget is None else Budget(budget)
    if out is not None and in_place:
        raise UserError("--out and --in-place are two places for one checkpoint; give one")
    if wanted is None and (per_layer or in_place or out is not None):
        option = "--per-layer" if per_layer else "--in-place" if in_place else "--out"
        raise UserError(f"{option} is for picked thresholds; expected --budget with it")
    set_threads(threads)
    model, metadata = load_checkpoint(checkpoint, arch)
    test = read_test_data(model, metadata, kind, data, task, images)
    settings = SweepSettings(
        steps=thresholds, batch=batch, seconds=seconds, budget=wanted, per_layer=per_layer, seed=seed
    )
    with steps_shown() as show:
        document = measure(model, Path(checkpoint).stem, test, settings, on_step=show)
    if plot is not None:
        write_atomically(plot, picture(partial(sweep_figure, document), plot.suffix.removeprefix(".")))
    picked = document.get("pick")
    if picked is not None:
        set_operating_point(model, picked["thresholds"], picked["layer_thresholds"])
        target = out or (Path(checkpoint) if in_place else _beside(checkpoint, picked["budget"]))
        facts = {key: picked[key] for key in ("budget", "thresholds", "layer_thresholds")}
        dsn_models.save(model, target, **{**metadata, "operating_point": facts})
        document["checkpoint"] = str(target)
    if json is not None:
        write_json(document, json)
        return
    shown = console()
    shown.print(front_table(document))
    if picked is not None:
        for line in pick_lines(picked):
            shown.print(line, soft_wrap=True)
        shown.print(f"operating point written to {document['checkpoint']}", soft_wrap=True)
