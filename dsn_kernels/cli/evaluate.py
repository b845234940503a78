"""``dsn eval``: accuracy and skip ratio of a checkpoint."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

import dsn_kernels
from dsn_models import UserError
from dsn_models.dual_skipping import BRANCHES
from dsn_models.training.evaluation import evaluate as measure
from dsn_models.training.robustness import attacked_accuracy

from .common import (
    MANY,
    CheckpointArgument,
    DataOption,
    JsonOption,
    KindOption,
    TaskOption,
    ThreadsOption,
    check_classes,
    check_writable,
    console,
    finite,
    load_checkpoint,
    open_test_data,
    percent,
    resolve_task,
    set_threads,
    write_json,
)


def results_table(results: dict[str, Any]) -> Table:
    """Accuracy and layers skipped per branch, of what ``dsn_models.training.evaluate`` returns."""
    table = Table(title=f"{results['images']} test images")
    for column in ("branch", "accuracy", "layers skipped"):
        table.add_column(column, justify="left" if column == "branch" else "right")
    for name in BRANCHES:
        if name in results:
            skipped = results[name].get("skipped")
            table.add_row(name, percent(results[name]["accuracy"]), "-" if skipped is None else percent(skipped))
    return table


def attack_table(results: list[dict[str, Any]]) -> Table:
    """Accuracy before and under attack, per branch, of what ``robustness.attacked_accuracy`` returns."""
    first = results[0]
    table = Table(title=f"{first['attack']}, epsilon {first['epsilon']:g}, {first['images']} test images")
    for column in ("branch", "skipping", "clean", "attacked", "layers skipped"):
        table.add_column(column, justify="left" if column == "branch" else "right")
    for result in results:
        for name in BRANCHES:
            if name in result:
                found = result[name]
                skipped = "-" if "skipped" not in found else percent(found["skipped"])
                row = (percent(found["clean"]), percent(found["accuracy"]), skipped)
                table.add_row(name, "on" if result["gated"] else "off", *row)
    return table


def evaluate(
    checkpoint: CheckpointArgument,
    data: DataOption = None,
    kind: KindOption = None,
    backend: Annotated[str, typer.Option(help="auto, cpu or reference.")] = "auto",
    task: TaskOption = None,
    images: Annotated[int | None, typer.Option(min=1, max=MANY, help="Number of Navon images.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=MANY, help="Images at a time.")] = 250,
    attack: Annotated[str | None, typer.Option(help="Also under attack, skipping on and off: fgsm or pgd.")] = None,
    epsilon: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Largest change of a pixel by the attack, of 1.")
    ] = 8 / 255,
    steps: Annotated[int, typer.Option(min=1, max=MANY, help="Steps of pgd.")] = 10,
    attacked_images: Annotated[int, typer.Option(min=1, max=MANY, help="How many test images are attacked.")] = 1000,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Accuracy and skip ratio of each branch on a test set; with --attack, accuracy under attack too."""
    check_writable(json)
    set_threads(threads)
    model, metadata = load_checkpoint(checkpoint)
    task = resolve_task(model, metadata, task)
    dataset = open_test_data(model, metadata, kind, data, images)
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
    if json is not None:
        document = {"schema": 1, "checkpoint": checkpoint, "backend": backend, "seconds": seconds, **results}
        write_json(document | ({"attacks": attacks} if attacks else {}), json)
        return
    out = console()
    out.print(results_table(results))
    if attacks:
        out.print(attack_table(attacks))
    out.print(f"backend {backend}, {seconds:.1f} s", soft_wrap=True)
