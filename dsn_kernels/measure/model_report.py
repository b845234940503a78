"""The report of a checkpoint on a data set: one HTML file with everything in it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import dsn_kernels
from dsn_models import UserError
from dsn_models.gaternet import FILTERS
from dsn_models.skipnet import UNITS
from dsn_models.statistics import embed_gates, gate_kinds, gates_on

from . import machine
from .compare import compare
from .flops import layer_counts
from .networks import count_dense, gate_counts
from .plots import PAGE, inline_svg, styled, sweep_figure
from .records import Labelled, Record, fraction_interval, mean_interval, record
from .report import by_block, latency_figure, png, template
from .sweep import SweepSettings, sweep

_EMBEDDED = 500  # images whose gates are embedded in the plane; t-SNE takes seconds for them
_SWEPT = 1000
_WORDS = {UNITS: ("units", "unit"), FILTERS: ("filters", "unit")}
_SECTIONS = {
    "summary": "Summary", "cost": "Latency and MACs", "sweep": "Other thresholds", "layers": "Layers and gates",
    "classes": "By class", "images": "Images", "environment": "Environment",
}  # fmt: skip


def report(
    model: nn.Module,
    name: str,
    data: Labelled,
    *,
    sweep_steps: int = 3,
    batches: Sequence[int] = (1, 8, 64),
    seconds: float = 1.0,
    cards: int = 6,
    on_step: Callable[[str, float], None] = lambda text, fraction: None,
) -> tuple[str, dict[str, Any]]:
    """Measures a gated network on ``data`` and says what its gates did and saved.

    Args:
        model: of a family that ``dsn_kernels.accelerate`` serves.
        name: what the report calls it.
        data: images and labels.
        sweep_steps: thresholds per branch of the sweep, on at most 1,000 of the images; 0 for no sweep.
        batches: sizes to time; those of more images than there are are left out.
        seconds: of timing per contestant and batch size.
        cards: of the easiest, and of the hardest images.
        on_step: told what is going on, and which part of it is done.

    Returns:
        The page, and its facts, fit for JSON.

    Raises:
        UserError: the model has no gates, nothing in it can be accelerated, or there are fewer than two images.
    """
    counts = gate_counts(model)
    if not counts:
        raise UserError(f"{name} has no gates to report on; expected a gated network")
    if len(data.images) < 2:
        raise UserError(f"there are {len(data.images)} images; expected two or more")
    model = model.eval()
    fast: Any = dsn_kernels.accelerate(model)
    kept = record(fast, data, on_batch=lambda done: on_step("classifying", done))
    opened = record(fast, data, all_open=True, on_batch=lambda done: on_step("classifying, every gate open", done))
    sizes = [batch for batch in batches if batch <= len(data.images)]
    document = _facts(model, name, data, kept, opened)
    document["macs_rows"] = _macs_rows(fast, kept, opened)
    document["latency"] = compare(model, fast, data.images, sizes, seconds, on_step)
    swept = _sweep(model, name, data, sweep_steps, on_step)
    on_step("drawing", 0.0)
    page = template("model-report.html.j2").render(
        d=document,
        sections=[(key, title) for key, title in _SECTIONS.items() if key != "sweep" or swept is not None],
        latency_svg=latency_figure(document["latency"]),
        sweep_svg=None if swept is None else inline_svg(sweep_figure(swept)),
        sweep_images=None if swept is None else swept["images"]["pick"],
        gate_figures=_gate_figures(kept),
        galleries=_galleries(model, data, kept, cards),
    )
    return page, document | ({"sweep": swept} if swept is not None else {})


def _sweep(
    model: Any, name: str, data: Labelled, steps: int, on_step: Callable[[str, float], None]
) -> dict[str, Any] | None:
    """None where none is wanted, the network's gates have no thresholds, or there are too few images."""
    has_thresholds = hasattr(model.config, "thresholds") or hasattr(model.config, "threshold")
    if steps < 1 or not has_thresholds or len(data.images) < 4:
        return None
    some = data.part(torch.linspace(0, len(data.images) - 1, min(2 * _SWEPT, len(data.images))).long())
    return (
        sweep(model, name, some, SweepSettings(steps=steps, seconds=0.2), on_step=on_step) if len(some[0]) > 3 else None
    )


def _blocks(model: Any) -> list[int]:
    """Layers or units with gates of each block; of filters, the units."""
    config = model.config
    if hasattr(config, "block_layers"):
        return list(config.block_layers)
    if hasattr(model, "unit_sizes"):
        return [len(model.unit_sizes)]
    first, *others = config.stage_units
    return [first - 1, *others]  # the first unit has no gate


def _cells(model: Any, gates: Tensor) -> Tensor:
    """What a strip shows, float64 [N, cells]: gates, or of filters the fraction of each unit's that is on."""
    gates = gates.double()
    if not hasattr(model, "unit_sizes"):
        return gates
    return torch.stack([part.mean(1) for part in gates.split(list(model.unit_sizes.values()), 1)], 1)


def _gates_of_task(kept: Record, task: str) -> Tensor:
    return kept.gates.get(task, next(iter(kept.gates.values())))


def _facts(model: Any, name: str, data: Labelled, kept: Record, opened: Record) -> dict[str, Any]:
    blocks, count = _blocks(model), len(data.images)
    plural, single = _WORDS.get(next(iter(kept.gates)), ("layers", "layer"))
    tasks, classes, notes = {}, {}, []
    sizes = model.config.classes if isinstance(model.config.classes, tuple) else (model.config.classes,)
    for task, number in zip(data.labels, sizes, strict=True):
        wrong, wrong_open = (int((~one.correct(task)).sum()) for one in (kept, opened))
        tasks[task] = {"error": fraction_interval(wrong, count), "open_error": fraction_interval(wrong_open, count)}
        cells = _cells(model, _gates_of_task(kept, task))
        classes[task] = [_class_row(label, kept, task, cells, blocks) for label in range(number)]
        missing = [str(row["label"]) for row in classes[task] if row["images"] == 0]
        if missing:
            notes.append(f"The data holds no image of {task} class {', '.join(missing)}.")
    return {
        "schema": 1,
        "model": name,
        "images": count,
        "unit": plural,
        "unit_one": single,
        "tasks": tasks,
        "skipped": {key: mean_interval(1 - gates.double().mean(1)) for key, gates in kept.gates.items()},
        "macs_dense": count_dense(model),
        "macs_executed": mean_interval(kept.macs),
        "ran": {key: by_block(_cells(model, gates).mean(0).tolist(), blocks) for key, gates in kept.gates.items()},
        "kinds": {key: _kinds(gates) for key, gates in kept.gates.items()},
        "classes": classes,
        "notes": notes,
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "environment": {
            "processor": "{cpu}, {cores} cores".format(**machine.describe()),
            "threads": torch.get_num_threads(),
            "kernels": dsn_kernels._C.build_info()["isa"],
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "commit": machine.source_commit() or "-",
        },
    }


def _class_row(label: int, kept: Record, task: str, cells: Tensor, blocks: Sequence[int]) -> dict[str, Any]:
    own = kept.labels[task] == label
    count = int(own.sum())
    if count == 0:
        return {"label": label, "images": 0}
    return {
        "label": label,
        "images": count,
        "accuracy": kept.correct(task)[own].double().mean().item(),
        "skipped": 1 - cells[own].mean().item(),
        "ran": by_block(cells[own].mean(0).tolist(), blocks),
    }


def _kinds(gates: Tensor) -> dict[str, int]:
    kinds = gate_kinds(gates.numpy())
    return {"gates": gates.shape[1], **{key: int(values.sum()) for key, values in kinds._asdict().items()}}


def _macs_rows(fast: Any, kept: Record, opened: Record) -> dict[str, float]:
    """MACs per image, by what they are."""
    rows = {"every gate open": opened.macs.mean().item()}
    if hasattr(fast, "macs"):
        layers = layer_counts(fast, kept.gates, len(kept.macs))
        skipped_only = sum((layer.ran * layer.dense).mean().item() for layer in layers)
        rows["as papers count: dense without what was skipped"] = skipped_only
    return rows | {"executed": kept.macs.mean().item()}


def _gate_figures(kept: Record) -> list[tuple[str, str]]:
    """Inline SVG and caption: how many gates were on per image, and where the images lie by their gates."""
    figures = []
    for name, gates in kept.gates.items():
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = styled(figure.subplots())
        counts = gates_on(gates.numpy())
        axes.hist(counts, bins=min(30, max(1, int(np.ptp(counts)) + 1)), color=PAGE.skipping)
        axes.set_xlabel("gates on")
        axes.set_ylabel("images")
        figures.append((inline_svg(figure), f"{name}: gates on per image, {gates.shape[1]} in all"))
        task = name if name in kept.labels else next(iter(kept.labels))
        points = gates[:_EMBEDDED].numpy()
        if len(np.unique(points, axis=0)) < 4:
            continue
        places = embed_gates(points)
        figure = Figure(figsize=(4.6, 3.0), layout="constrained")
        axes = styled(figure.subplots())
        axes.scatter(places[:, 0], places[:, 1], 8, kept.labels[task][:_EMBEDDED].numpy(), cmap="tab20")
        axes.set_axis_off()
        caption = f"{name}: images by their gates (PCA, then t-SNE), coloured by {task} class"
        figures.append((inline_svg(figure), caption))
    return figures


def _galleries(model: Any, data: Labelled, kept: Record, cards: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Images that took the fewest MACs, the most, and the wrongly classified ones of the highest loss."""
    order = kept.macs.argsort(stable=True)
    loss = torch.stack(list(kept.losses.values())).mean(0)
    groups = {
        "Easiest: the least computed": order[:cards],
        "Hardest: the most computed": order.flip(0)[:cards],
        "Furthest from the right answer": loss.argsort(descending=True)[:cards],
    }
    low, high = data.images.amin((0, 2, 3), keepdim=True)[0], data.images.amax((0, 2, 3), keepdim=True)[0]
    shown = {int(i): (data.images[i] - low) / (high - low).clamp_min(1e-12) for group in groups.values() for i in group}
    return [(title, [_card(model, kept, i, shown[i]) for i in group.tolist()]) for title, group in groups.items()]


def _card(model: Any, kept: Record, index: int, image: Tensor) -> dict[str, Any]:
    answers = [
        {"task": task, "label": int(labels[index]), "predicted": int(kept.predictions[task][index])}
        for task, labels in kept.labels.items()
    ]
    used = [_used(model, name, gates[index]) for name, gates in kept.gates.items()]
    alt = ", ".join(f"{answer['task']} class {answer['label']}" for answer in answers)
    return {"index": index, "png": png(image), "alt": alt, "answers": answers, "used": used}


def _used(model: Any, name: str, taken: Tensor) -> Mapping[str, Any]:
    blocks = by_block(_cells(model, taken[None])[0].tolist(), _blocks(model))
    return {"name": name, "ran": int(taken.sum()), "of": len(taken), "blocks": blocks}
