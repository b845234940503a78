"""The report of a network on a data set: one HTML file with everything in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import dsn_kernels
from dsn_models import UserError
from dsn_models.controls import LEAST_IMAGES, told
from dsn_models.controls import controls as measure_controls
from dsn_models.lettering import shortened
from dsn_models.statistics import embed_gates, gate_kinds, principal_gates

from ..measure.baselines import check_known, runtimes
from ..measure.networks import gate_counts
from ..measure.records import Labelled, LabelledDataset, Record, class_names, record
from ..tuning.operating_point import moves_thresholds
from ..tuning.sweep import sweep
from ..tuning.sweeper import SweepSettings
from .compare import compare
from .facts import blocks_of, cell_names, cells_of, facts, ran_by_class
from .feature_maps import feature_maps
from .figures import (
    Drawing,
    classes_figure,
    embedding_figure,
    feature_maps_figure,
    gates_on_figure,
    kinds_figure,
    latency_figure,
    macs_figure,
)
from .headlines import Accuracy, Timing, gates_line, kernels_line
from .page import by_block, png, template
from .plots import SWEEP_MEASURES, sweep_panel

EAGER = "eager PyTorch"
_EMBEDDED = 500  # images whose gates are embedded in the plane; t-SNE takes seconds for them
_SWEPT = 1000
_SECTIONS = {
    "summary": "Summary", "controls": "For whom the gates open", "cost": "Latency and MACs",
    "sweep": "Other thresholds", "layers": "Layers", "gates": "Gates", "classes": "By class", "images": "Images",
    "features": "Feature maps", "environment": "Environment",
}  # fmt: skip


class Report(NamedTuple):
    """The page, its facts, fit for JSON, and its figures."""

    page: str
    document: dict[str, Any]
    drawings: list[Drawing]


def report(
    model: nn.Module,
    name: str,
    data: Labelled,
    *,
    sweep_steps: int = 3,
    controls: bool = True,
    batches: Sequence[int] = (1, 8, 64),
    seconds: float = 1.0,
    against: Sequence[str] | None = (),
    started: Mapping[str, float] = MappingProxyType({}),
    cards: int = 6,
    on_step: Callable[[str, float], None] = lambda text, fraction: None,
) -> Report:
    """Measures a gated network on ``data`` and says what its gates did and saved.

    Args:
        model: of a family that ``dsn_kernels.accelerate`` serves.
        name: what the report calls it.
        data: images and labels.
        sweep_steps: thresholds per branch of the sweep, on at most 1,000 of the images; 0 for no sweep.
        controls: also under other gates than its own (:mod:`dsn_models.controls`), where there are images enough.
        batches: sizes to time; those of more images than there are are left out.
        seconds: of timing per contestant and batch size.
        against: baselines to time beside the dense network in eager PyTorch, of ``baselines.BASELINES``; None for the
            runtimes that are installed.
        started: accuracy by task of the network that training began with, where that is known.
        cards: of the easiest, and of the hardest images.
        on_step: told what is going on, and which part of it is done.

    Raises:
        UserError: the model has no gates, nothing in it can be accelerated, a baseline is unknown, or there are fewer
            than two images.
    """
    against = runtimes() if against is None else against
    check_known(against)
    if not gate_counts(model):
        raise UserError(f"{name} has no gates to report on; expected a gated network")
    if len(data.images) < 2:
        raise UserError(f"there are {len(data.images)} images; expected two or more")
    start = time.perf_counter()
    model = model.eval()
    fast: Any = dsn_kernels.accelerate(model)
    kept = record(fast, data, on_batch=lambda done: on_step("classifying", done))
    opened = record(fast, data, all_open=True, on_batch=lambda done: on_step("classifying, all gates open", done))
    on_step("comparing with PyTorch", 0.0)
    document = facts(model, fast, name, data, kept, opened)
    sizes = [batch for batch in batches if batch <= len(data.images)]
    document["latency"] = compare(model, fast, data.images, sizes, seconds, on_step, against)
    missing = {name: reason for row in document["latency"] for name, reason in row["missing"].items()}
    document["headlines"] = headlines(document, [name for name in against if name not in missing], started)
    document["notes"] += [f"Not timed: {name}, {reason}." for name, reason in missing.items()]
    if sweep_steps > 0 and len(data.images) > 3 and moves_thresholds(model):
        some = data.part(torch.linspace(0, len(data.images) - 1, min(2 * _SWEPT, len(data.images))).long())
        document["sweep"] = sweep(model, name, some, SweepSettings(steps=sweep_steps, seconds=0.2), on_step=on_step)
    if controls and len(data.images) >= LEAST_IMAGES:
        task = "both" if len(data.labels) > 1 else next(iter(data.labels))
        document["controls"] = measure_controls(model, LabelledDataset(data), task=task, network=fast, on_step=on_step)
    groups = _groups(kept, cards)
    sections: dict[str, list[Drawing]] = {}
    for section, drawing in _drawings(model, data, kept, document, groups):
        on_step(f"drawing {drawing.name}", len(sections) / len(_SECTIONS))
        sections.setdefault(section, []).append(drawing)
    document["seconds"] = time.perf_counter() - start
    page = template("report.html.j2").render(
        d=document,
        baselines=[name for name in against if name not in missing],
        controls=told(document["controls"]) if "controls" in document else None,
        sections=[(key, title) for key, title in _SECTIONS.items() if _shown_section(key, document, sections)],
        figures={key: [(drawing.svg(), drawing.caption) for drawing in drawn] for key, drawn in sections.items()},
        galleries=_galleries(model, data, kept, groups),
    )
    return Report(page, document, [drawing for drawn in sections.values() for drawing in drawn])


def headlines(document: Mapping[str, Any], others: Sequence[str], started: Mapping[str, float]) -> list[str]:
    """What the gates save, and what the kernels gain beside eager PyTorch and ``others``."""
    rows = []
    for row in document["latency"]:
        best = EAGER if row["fastest"] == "dense" else row["fastest"]
        gates = (1 - 1 / row["gates"], row["gates_called"])
        rows.append(Timing(row["batch"], *gates, best, row["kernels"], row["kernels_called"]))
    own, opened = (
        {task: 1 - found[key]["mean"] for task, found in document["tasks"].items()} for key in ("error", "open_error")
    )
    accuracy = Accuracy(own, opened, started, document["images"])
    gates_told = gates_line(rows, document["macs_saved"]["gates"], accuracy)
    return [line for line in (gates_told, kernels_line(rows, [EAGER, *others])) if line]


_DRAWN = ("sweep", "features")  # sections that are left out where there is nothing to draw


def _shown_section(key: str, document: Mapping[str, Any], drawn: Mapping[str, Any]) -> bool:
    return "controls" in document if key == "controls" else key in drawn or key not in _DRAWN


def _groups(kept: Record, cards: int) -> dict[str, Tensor]:
    """Images that took the fewest MACs, the most, and those of the highest loss. Ties by loss: the least is easiest."""
    loss = torch.stack(list(kept.losses.values())).mean(0)
    order = torch.from_numpy(np.lexsort((loss.numpy(), kept.macs.numpy())))
    return {
        "Easiest: the least computed": order[:cards],
        "Hardest: the most computed": order.flip(0)[:cards],
        "Furthest from the right answer": loss.argsort(descending=True)[:cards],
    }


def _drawings(
    model: Any, data: Labelled, kept: Record, document: dict[str, Any], groups: Mapping[str, Tensor]
) -> Iterator[tuple[str, Drawing]]:
    """The figures by section."""
    threads = f"{document['threads']} {'thread' if document['threads'] == 1 else 'threads'}"
    timed = f"Medians on {document['machine']['cpu']}, {threads}, measured in turns."
    yield "cost", Drawing("latency", timed, partial(latency_figure, document["latency"]))
    yield "cost", Drawing("macs", "MACs of one image, the mean.", partial(macs_figure, document["macs_rows"]))
    if "sweep" in document:
        for key, measure in SWEEP_MEASURES.items():
            draw = partial(sweep_panel, document["sweep"], key)
            yield "sweep", Drawing(f"sweep-{key}", f"Accuracy against {measure.words}.", draw)
    yield from _gate_drawings(model, data, kept)
    blocks = blocks_of(model)
    for task, rows in document["classes"].items():
        ran = ran_by_class(model, kept, task, len(rows))
        draw = partial(
            classes_figure, ran, blocks, [row["name"] for row in rows], document["unit_one"], cells=cell_names(model)
        )
        named = ("classes", "How") if len(document["classes"]) == 1 else (f"classes-{task}", f"{task}: how")
        yield "classes", Drawing(named[0], f"{named[1]} much each class skipped.", draw)
    ends = list(groups.values())
    chosen = torch.cat([ends[0][:2], ends[1][:2]])
    maps = feature_maps(model, data.images[chosen])
    if maps:
        caption = (
            "The two easiest and the two hardest images: mean over channels of the absolute features, each scaled."
        )
        yield "features", Drawing("features", caption, partial(feature_maps_figure, _shown(data, chosen), maps))


def _gate_drawings(model: Any, data: Labelled, kept: Record) -> Iterator[tuple[str, Drawing]]:
    for name, gates in kept.gates.items():
        rows = gates.numpy()
        if hasattr(model, "unit_sizes"):
            kinds, what = gate_kinds(rows, list(model.unit_sizes.values())), "unit"
        else:
            kinds, what = gate_kinds(rows, [size for size in blocks_of(model) if size]), "block"
        yield "gates", Drawing(f"kinds-{name}", f"{name}: what gates do.", partial(kinds_figure, kinds, what))
        yield "gates", Drawing(f"gates-{name}", f"{name}: gates on per image.", partial(gates_on_figure, rows))
        task = name if name in kept.labels else next(iter(kept.labels))
        some = torch.linspace(0, len(rows) - 1, min(_EMBEDDED, len(rows))).long().unique().numpy()
        patterns, pattern = np.unique(rows[some], axis=0, return_inverse=True)
        if len(patterns) < 4:
            continue
        labels = kept.labels[task].numpy()[some]
        names = class_names(data, task, int(kept.labels[task].max()) + 1)
        for method, places in (("PCA", principal_gates(patterns)), ("t-SNE", embed_gates(patterns))):
            whose = f"{task} class" if len(kept.labels) > 1 else "class"
            caption = (
                f"{name}: {len(some)} images laid out by their {len(patterns)} gate patterns, alike ones near each "
                f"other ({method}); where the colours, one per {whose}, lie apart, the gates tell classes apart."
            )
            draw = partial(embedding_figure, places[pattern.ravel()], labels, names)
            yield "gates", Drawing(f"{method.lower()}-{name}", caption, draw)


def _shown(data: Labelled, indices: Tensor) -> Tensor:
    """Images [N, C, H, W] in [0, 1]: each channel of the data stretched to it."""
    low, high = data.images.amin((0, 2, 3), keepdim=True), data.images.amax((0, 2, 3), keepdim=True)
    return (data.images[indices] - low) / (high - low).clamp_min(1e-12)


def _galleries(
    model: Any, data: Labelled, kept: Record, groups: Mapping[str, Tensor]
) -> list[tuple[str, list[dict[str, Any]]]]:
    galleries = []
    for title, indices in groups.items():
        shown = _shown(data, indices)
        cards = [_card(model, data, kept, i, image) for i, image in zip(indices.tolist(), shown, strict=True)]
        galleries.append((title, cards))
    return galleries


def _card(model: Any, data: Labelled, kept: Record, index: int, image: Tensor) -> dict[str, Any]:
    answers: list[dict[str, Any]] = []
    for task, labels in kept.labels.items():
        names = class_names(data, task, 1 + int(max(labels.max(), kept.predictions[task].max())))
        label, predicted = int(labels[index]), int(kept.predictions[task][index])
        answer = {"label": shortened(names[label]), "predicted": shortened(names[predicted])}
        whose = f"{task}: " if len(kept.labels) > 1 else ""
        answers.append({"task": whose, **answer, "wrong": label != predicted})
    used = []
    for name, gates in kept.gates.items():
        taken = gates[index]
        cells = by_block(cells_of(model, taken[None])[0].tolist(), blocks_of(model))
        used.append({"name": name, "ran": int(taken.sum()), "of": len(taken), "blocks": cells})
    alt = ", ".join(f"{answer['task']}class {answer['label']}" for answer in answers)
    return {"index": index, "png": png(image), "alt": alt, "answers": answers, "used": used}
