"""``dsn predict``: the classes of image files, and what each took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import dsn_kernels
from dsn_models import UserError
from dsn_models.dual_skipping import BRANCHES
from dsn_models.world import Preprocess

from ..measure.networks import as_outputs
from .common import (
    ArchOption,
    CheckpointArgument,
    JsonOption,
    ThreadsOption,
    check_writable,
    columned,
    console,
    millis,
    percent,
    set_threads,
    write_json,
)
from .convert import given_normalisation
from .inputs import load_checkpoint

_CALLS = 5  # of which the fastest is told


def _preprocess(model: Any, checkpoint: str, mean: str | None, std: str | None) -> Preprocess:
    given = given_normalisation(mean, std)
    if given is not None:
        return Preprocess(model.config.image_size, model.config.in_channels, given.mean, given.std)
    if model.preprocess is None:
        raise UserError(f"{checkpoint} does not say how its images were normalised; give --mean and --std")
    made: Preprocess = model.preprocess
    return made


def predict(
    checkpoint: CheckpointArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures.")],
    arch: ArchOption = None,
    mean: Annotated[
        str | None, typer.Option(metavar="M,M,M", help="What images are normalised by, if the checkpoint is silent.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="S,S,S", help="Likewise; given with --mean.")] = None,
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """The class of each picture, its probability, the layers that it used and the milliseconds it took.

    Pictures are resized, cut out and normalised as those that the network was trained on, and run one at a time; the
    milliseconds are of the fastest of five calls.
    """
    check_writable(json, weights=False)
    set_threads(threads)
    model: Any
    model, _ = load_checkpoint(checkpoint, arch)
    preprocess = _preprocess(model, checkpoint, mean, std)
    fast: Any = dsn_kernels.accelerate(model)
    tasks = BRANCHES if isinstance(model.config.classes, tuple) else ("",)
    rows = [_row(fast, path, preprocess(path)[None], tasks, model.class_names) for path in files]
    if json is not None:
        write_json({"schema": 1, "checkpoint": checkpoint, "threads": torch.get_num_threads(), "images": rows}, json)
        return
    columns = [part for task in tasks for part in ((f"{task} class".strip()), "probability")]
    used_by = [f"{'layers' if name in BRANCHES else name} used" for name in getattr(fast, "last_gates", {})]
    table = columned(Path(checkpoint).name, ("image", *columns, *used_by, "ms"), ("image",))
    for row in rows:
        cells = [cell for found in row["predictions"] for cell in (found["class"], percent(found["probability"]))]
        used = (f"{one['used']} of {one['of']}" for one in row["layers"].values())
        table.add_row(row["image"], *cells, *used, millis(row["ms"]))
    console().print(table)


def _row(fast: Any, path: Path, images: torch.Tensor, tasks: tuple[str, ...], names: Any) -> dict[str, Any]:
    seconds = []
    with torch.inference_mode():
        for _ in range(_CALLS):
            start = time.perf_counter()
            outputs = fast(images)
            seconds.append(time.perf_counter() - start)
    predictions = []
    for task, logits in zip(tasks, as_outputs(outputs), strict=True):
        probability, label = logits[0].float().softmax(0).max(0)
        own = names.get(task) if isinstance(names, dict) else names
        name = str(label.item()) if own is None else own[int(label)]
        predictions.append({"task": task, "class": name, "label": int(label), "probability": probability.item()})
    gates = getattr(fast, "last_gates", {})
    layers = {name: {"used": int(taken[0].sum()), "of": taken.shape[1]} for name, taken in gates.items()}
    return {"image": str(path), "predictions": predictions, "layers": layers, "ms": 1e3 * min(seconds)}
