"""``dsn eval``: accuracy and skip ratio of a checkpoint."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.table import Table

import dsn_kernels
from dsn_models import UserError
from dsn_models.controls import controls as measure_controls
from dsn_models.dual_skipping import BRANCHES

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
    percent,
    set_threads,
    steps_shown,
    write_json,
)
from .inputs import load_checkpoint, open_test_data, resolve_task


def results_table(results: dict[str, Any]) -> Table:
    """Accuracy and layers skipped, of two tasks by task, of what ``dsn_models.training.evaluate`` returns."""
    named = [name for name in BRANCHES if name in results]
    first = ("task",) if len(named) > 1 else ()
    table = columned(f"{results['images']} test images", (*first, "accuracy", "layers skipped"), first)
    for name in named:
        skipped = results[name].get("skipped")
        cells = (percent(results[name]["accuracy"]), "-" if skipped is None else percent(skipped))
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


_CONTROLS = {
    "own": "its own",
    "another": "another image's",
    "random": "random, at their rates",
    "static": "one pattern for all",
    "open": "all open",
}


def _range(found: dict[str, Any], value: str, low: str, high: str) -> str:
    return f"{100 * found[value]:.1f} ({100 * found[low]:.1f} to {100 * found[high]:.1f})"


def controls_tables(results: dict[str, Any]) -> list[Table]:
    """Accuracy under the network's own gates and under others, and what each gate depends on."""
    tasks = [name for name in BRANCHES if name in results["under"]["own"]]
    title = f"the same {results['images']} test images under other gates; in %, with 95 % intervals"
    columns = ("gates", "MACs", *(f"{task}{what}" for task in tasks for what in ("", ": own gain")))
    table = columned(title, columns, ("gates",))
    for name, label in _CONTROLS.items():
        found, cells = results["under"][name], []
        for task in tasks:
            gain = "-" if name == "own" else _range(found[task], "gain", "gain_low", "gain_high")
            cells += [_range(found[task], "accuracy", "low", "high"), gain]
        table.add_row(label, percent(found["macs"]), *cells)
    title = "what the gates depend on: mutual information in bits, mean over the gates"
    columns = ("gates", "task", "open for 5 to 95 % of the images", "with the class", "with the loss")
    gates = columned(title, columns, ("gates", "task"))
    for name, found in results["gates"].items():
        between = sum(0.05 <= rate <= 0.95 for rate in found["open"])
        for task in tasks if name not in tasks else (name,):
            bits = (f"{sum(found[task][key]) / len(found['open']):.3f}" for key in ("class", "loss"))
            gates.add_row(name, task, f"{between} of {len(found['open'])}", *bits)
    return [table, gates]


def difficulty_lines(results: dict[str, Any]) -> list[str]:
    """Whether harder images run more, a line for each task."""
    lines = []
    for task, found in results["difficulty"].items():
        told = "all images take as many MACs"
        if found["correlation"] is not None:
            told = "{correlation:+.2f} ({low:+.2f} to {high:+.2f})".format(**found)
        lines.append(f"{task}: rank correlation of an image's MACs with its loss: {told}")
    return lines


def evaluate(
    checkpoint: CheckpointArgument,
    arch: ArchOption = None,
    data: DataOption = None,
    kind: KindOption = None,
    backend: Annotated[str, typer.Option(metavar="auto|cpu|reference", help="What computes.")] = "auto",
    task: TaskOption = None,
    images: ImagesOption = None,
    batch: BatchOption = 250,
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
    dataset = open_test_data(model, metadata, kind, data, images, task)
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
        for table in controls_tables(compared):
            out.print(table)
        for line in difficulty_lines(compared):
            out.print(line, soft_wrap=True)
    out.print(f"backend {backend}, {seconds:.1f} s", soft_wrap=True)
