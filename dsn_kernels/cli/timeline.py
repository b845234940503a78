"""``dsn timeline``: which layer ran for which sample and what it cost."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import dsn_kernels
from dsn_models import UserError
from dsn_models.checkpoints import write_atomically

from ..measure import machine
from ..measure.bench import noise
from ..measure.gate_costs import gate_costs
from ..measure.gates import GateSetting
from ..measure.networks import gate_counts
from ..measure.timeline import Timeline
from ..measure.timeline import timeline as measure
from ..report.plots import check_picture, picture
from ..report.timeline_views import COLUMNS, cells, document, kinds, timeline_figure, trace
from .common import (
    MANY,
    SEEDS,
    ArchOption,
    BatchOption,
    JsonOption,
    KindOption,
    PinOption,
    ThreadsOption,
    check_writable,
    columned,
    console,
    parse_options,
    percent,
    set_threads,
    write_json,
)
from .inputs import load_model, test_images


def table(timeline: Timeline, title: str, top: int) -> Table:
    """The ``top`` steps that took the most, in the network's order, and what the others took together."""
    result = columned(title, COLUMNS, COLUMNS[:1])
    for row in cells(timeline, top):
        result.add_row(*row)
    return result


def kind_table(timeline: Timeline, title: str, top: int) -> Table:
    """The ``top`` kinds of steps that took the most, and what lies outside of them."""
    every = kinds(timeline)
    result = columned(title, ("kind of step", "steps", "share", "GFLOP/s a thread"), ("kind of step",))
    for row in every[:top]:
        speed = "-" if row["gflops"] is None else f"{row['gflops']:.0f}"
        result.add_row(row["kind"], str(row["steps"]), percent(row["share"]), speed)
    if len(every) > top:
        result.add_row(f"{len(every) - top} other kinds", "", percent(sum(row["share"] for row in every[top:])), "")
    result.add_row("outside of steps", "", percent(1 - sum(row["share"] for row in every)), "")
    return result


def timeline(
    model: Annotated[str, typer.Argument(metavar="NAME|CKPT", help="A zoo name (random weights) or a checkpoint.")],
    arch: ArchOption = None,
    batch: BatchOption = 8,
    gates: Annotated[str, typer.Option(metavar="GATES", help="open, shut, trained, paper, random:P or equal:P.")] = "",
    trace_file: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Trace for ui.perfetto.dev, JSON.")
    ] = None,
    picture_file: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Samples by layers: .svg, .png or .pdf.")
    ] = None,
    costs_file: Annotated[
        Path | None, typer.Option("--costs", metavar="FILE", help="Milliseconds of each gate, for policy.costs; JSON.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, max=MANY, help="Calls; times are medians over them.")] = 5,
    top: Annotated[int, typer.Option(min=1, max=MANY, help="Steps in the table.")] = 30,
    by_kind: Annotated[bool, typer.Option("--kinds", help="Steps that do alike in one row.")] = False,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of a zoo model's configuration; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS, help="Of weights, images and random gates.")] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="DIR", help="Folder that holds the data; noise if not given.")
    ] = None,
    kind: KindOption = None,
    threads: ThreadsOption = None,
    pin: PinOption = None,
    json: JsonOption = None,
) -> None:
    """Which layer ran for which sample, when, on which thread, and what it cost: table, picture, trace."""
    for file in (json, trace_file, picture_file, costs_file):
        check_writable(file)
    if picture_file is not None:
        check_picture(picture_file.suffix.removeprefix("."))
    set_threads(threads, pin)
    network: Any
    network, metadata = load_model(model, seed, parse_options(option or []), arch)
    trained = Path(model).exists()
    counts = gate_counts(network)
    setting = GateSetting(gates or ("open" if not counts else "trained" if trained else "random:0.5"))
    if setting.text == "trained" and not trained:
        raise UserError(f"gates trained: {model} has random weights; expected a checkpoint")
    forced = setting.draw(network.config, counts, batch, torch.Generator().manual_seed(seed))
    images = (test_images(network, metadata, kind, data) or noise(network.config, seed))(batch, 0)
    fast = dsn_kernels.accelerate(network)
    if costs_file is not None:
        costs = gate_costs(network, fast, images, runs)
        write_json({"model": model, **costs, "threads": torch.get_num_threads(), **machine.facts()}, str(costs_file))
    found = measure(fast, images, forced, runs=runs)
    if trace_file is not None:
        write_json(trace(found), str(trace_file))
    if picture_file is not None:
        kind_of_picture = picture_file.suffix.removeprefix(".")
        write_atomically(picture_file, picture(partial(timeline_figure, found), kind_of_picture))
    if json is not None:
        write_json({"schema": 1, "model": model, "gates": setting.text, **document(found), **machine.facts()}, json)
        return
    title = f"{model}, batch {batch}, gates {setting.text}, {found.threads} threads: {found.total_ms:.2f} ms"
    console().print((kind_table if by_kind else table)(found, title, top))
