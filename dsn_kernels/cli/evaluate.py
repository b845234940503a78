"""``dsn eval``: accuracy and skip ratio of a checkpoint."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

import dsn_kernels
from dsn_models import UserError
from dsn_models.computation import used_parameters
from dsn_models.controls import controls as measure_controls
from dsn_models.controls import told
from dsn_models.dual_skipping import BRANCHES, DualSkippingNetwork

from .common import (
    MANY,
    ArchOption,
    BatchOption,
    CheckpointArgument,
    DataOption,
    ImagesOption,
    JsonOption,
    KindOption,
    TaskOption,
    ThreadsOption,
    check_writable,
    columned,
    console,
    finite,
    mega,
    percent,
    set_threads,
    steps_shown,
    write_json,
)
from .inputs import load_checkpoint, open_test_data, resolve_task


def results_table(results: dict[str, Any]) -> Table:
    """Accuracy, of tasks of more than five classes also among the five likeliest, layers skipped and, of a network of
    two branches, the parameters used, of what ``dsn_models.training.evaluate`` returns; of two tasks by task."""
    found = {name: results[name] for name in BRANCHES if name in results}
    shown = {
        "accuracy": ("accuracy", percent),
        "top5": ("top 5", percent),
        "skipped": ("layers skipped", percent),
        "parameters": ("parameters used", mega),
    }
    shown = {key: column for key, column in shown.items() if any(key in result for result in found.values())}
    first = ("task",) if len(found) > 1 else ()
    table = columned(f"{results['images']} test images", (*first, *(name for name, _ in shown.values())), first)
    for name, result in found.items():
        cells = (form(result[key]) if key in result else "-" for key, (_, form) in shown.items())
        table.add_row(*(name for _ in first), *cells)
    return table


def attack_table(results: list[dict[str, Any]]) -> Table:
    """Accuracy before and under attack, of two tasks by task, of what ``robustness.attacked_accuracy`` returns."""
    first = results[0]
    title = f"{first['attack']}, epsilon {first['epsilon']:g}, {first['images']} test images"
    named = [name for name in BRANCHES if name in first]
    task = ("task",) if len(named) > 1 else ()
    table = columned(title, (*task, "skipping", "clean", "attacked", "layers skipped"), task)
    for result in results:
        for name in named:
            found = result[name]
            skipped = "-" if "skipped" not in found else percent(found["skipped"])
            row = (percent(found["clean"]), percent(found["accuracy"]), skipped)
            table.add_row(*(name for _ in task), "on" if result["gated"] else "off", *row)
    return table


def controls_tables(found: dict[str, Any]) -> tuple[list[Table], list[str]]:
    """The tables and lines of :func:`dsn_models.controls.told`."""
    tables, lines = told(found)
    drawn = []
    for words in tables:
        drawn.append(columned(words.title, words.columns, words.columns[: words.left]))
        for row in words.rows:
            drawn[-1].add_row(*row)
    return drawn, lines


def _pixels(resize: str | None) -> int | str | None:
    return int(resize) if resize is not None and resize.isdecimal() else resize


def evaluate(
    checkpoint: CheckpointArgument,
    arch: ArchOption = None,
    data: DataOption = None,
    kind: KindOption = None,
    backend: Annotated[str, typer.Option(metavar="auto|cpu|reference", help="What computes.")] = "auto",
    task: TaskOption = None,
    images: ImagesOption = None,
    batch: BatchOption = 250,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS|square",
            help="Of images in files: the shorter side, before the centre is cut out; 256 for 224 is usual.",
        ),
    ] = None,
    attack: Annotated[
        str | None, typer.Option(metavar="fgsm|pgd", help="Also under attack, skipping on and off.")
    ] = None,
    epsilon: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Largest change of a pixel by the attack, of 1.")
    ] = 8 / 255,
    attack_steps: Annotated[int, typer.Option(min=1, max=MANY, help="Steps of pgd.")] = 10,
    attack_images: Annotated[int, typer.Option(min=1, max=MANY, help="How many test images are attacked.")] = 1000,
    controls: Annotated[bool, typer.Option("--controls", help="Also under other gates than its own.")] = False,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Accuracy and layers skipped on a test set; under attack and under other gates, if asked for."""
    # Here, because --help needs nothing of training.
    from dsn_models.training.evaluation import evaluate as measure
    from dsn_models.training.robustness import attacked_accuracy

    check_writable(json, weights=False)
    set_threads(threads)
    model, metadata = load_checkpoint(checkpoint, arch)
    dataset = open_test_data(model, metadata, kind, data, images, task, _pixels(resize))
    task = resolve_task(model, metadata, task, dataset)
    automatic = backend == "auto"
    try:
        backend = "cpu" if automatic else backend
        fast = dsn_kernels.accelerate(model, backend=backend)
    except UserError:
        if not automatic:
            raise
        backend = "reference"  # of a network that has no kernels
        fast = dsn_kernels.accelerate(model, backend=backend)
    attacks: list[dict[str, Any]] = []
    if attack is not None:
        for gated in (True, False) if hasattr(model, "gate_counts") else (True,):
            options: dict[str, Any] = {"images": attack_images, "task": task, "gated": gated, "batch": batch}
            attacks.append(attacked_accuracy(model, dataset, attack, epsilon=epsilon, steps=attack_steps, **options))
    start = time.perf_counter()
    results = measure(fast, dataset, task=task, batch=batch)
    seconds = time.perf_counter() - start
    if isinstance(model, DualSkippingNetwork):
        for name, count in used_parameters(model, {name: results[name]["ran"] for name in BRANCHES}).items():
            results[name]["parameters"] = count
    compared: dict[str, Any] = {}
    if controls:
        with steps_shown() as show:
            compared = measure_controls(model, dataset, task=task, network=fast, batch=batch, on_step=show)
    if json is not None:
        document = {"schema": 1, "checkpoint": checkpoint, "backend": backend, "seconds": seconds, **results}
        document |= ({"attacks": attacks} if attacks else {}) | ({"controls": compared} if compared else {})
        write_json(document, json)
        return
    out = console()
    out.print(results_table(results))
    if attacks:
        out.print(attack_table(attacks))
    if compared:
        tables, lines = controls_tables(compared)
        for table in tables:
            out.print(table)
        for line in lines:
            out.print(line, soft_wrap=True)
    out.print(f"backend {backend}, {seconds:.1f} s", soft_wrap=True)
