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
    percent,
    set_threads,
    steps_shown,
    write_json,
)
from .inputs import check_classes, load_checkpoint, open_test_data, resolve_task


def results_table(results: dict[str, Any]) -> Table:
    """Accuracy, of tasks of more than five classes also among the five likeliest, layers skipped and, of a network of
    two branches, the parameters used, per branch, of what ``dsn_models.training.evaluate`` returns."""
    found = {name: results[name] for name in BRANCHES if name in results}
    shown = {
        "accuracy": ("accuracy", percent),
        "top5": ("top 5", percent),
        "skipped": ("layers skipped", percent),
        "parameters": ("parameters used", mega),
    }
    shown = {key: column for key, column in shown.items() if any(key in result for result in found.values())}
    table = columned(f"{results['images']} test images", ("branch", *(name for name, _ in shown.values())), ("branch",))
    for name, result in found.items():
        table.add_row(name, *(form(result[key]) if key in result else "-" for key, (_, form) in shown.items()))
    return table


def attack_table(results: list[dict[str, Any]]) -> Table:
    """Accuracy before and under attack, per branch, of what ``robustness.attacked_accuracy`` returns."""
    first = results[0]
    title = f"{first['attack']}, epsilon {first['epsilon']:g}, {first['images']} test images"
    table = columned(title, ("branch", "skipping", "clean", "attacked", "layers skipped"), ("branch",))
    for result in results:
        for name in BRANCHES:
            if name in result:
                found = result[name]
                skipped = "-" if "skipped" not in found else percent(found["skipped"])
                row = (percent(found["clean"]), percent(found["accuracy"]), skipped)
                table.add_row(name, "on" if result["gated"] else "off", *row)
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
    backend: Annotated[str, typer.Option(help="auto, cpu or reference.")] = "auto",
    task: TaskOption = None,
    images: Annotated[int | None, typer.Option(min=1, max=MANY, help="Number of Navon images.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=MANY, help="Images at a time.")] = 250,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS|square",
            help="Of images in files: the shorter side, before the centre is cut out; 256 for 224 is usual.",
        ),
    ] = None,
    attack: Annotated[str | None, typer.Option(help="Also under attack, skipping on and off: fgsm or pgd.")] = None,
    epsilon: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Largest change of a pixel by the attack, of 1.")
    ] = 8 / 255,
    steps: Annotated[int, typer.Option(min=1, max=MANY, help="Steps of pgd.")] = 10,
    attacked_images: Annotated[int, typer.Option(min=1, max=MANY, help="How many test images are attacked.")] = 1000,
    controls: Annotated[bool, typer.Option("--controls", help="Also under other gates than its own.")] = False,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Accuracy and skip ratio of each branch on a test set; under attack and under other gates, if asked for."""
    # Here, because --help needs nothing of training.
    from dsn_models.training.evaluation import evaluate as measure
    from dsn_models.training.robustness import attacked_accuracy

    check_writable(json, weights=False)
    set_threads(threads)
    model, metadata = load_checkpoint(checkpoint, arch)
    task = resolve_task(model, metadata, task)
    dataset = open_test_data(model, metadata, kind, data, images, _pixels(resize))
    check_classes(model, dataset, task)
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
            options: dict[str, Any] = {"images": attacked_images, "task": task, "gated": gated, "batch": batch}
            attacks.append(attacked_accuracy(model, dataset, attack, epsilon=epsilon, steps=steps, **options))
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
