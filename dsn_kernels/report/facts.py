"""The facts of a report on a network and a data set, fit for JSON."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dsn_kernels
from dsn_models.gaternet import FILTERS
from dsn_models.intervals import design_effect, mean_interval, share_interval
from dsn_models.lettering import shortened
from dsn_models.skipnet import UNITS
from dsn_models.statistics import gate_kinds

from ..measure import machine
from ..measure.baselines import relative_error
from ..measure.flops import layer_counts
from ..measure.networks import as_outputs, count_dense
from ..measure.records import Labelled, Record, class_names, part_of
from ..tuning.operating_point import own_thresholds
from .page import by_block

_WORDS = {UNITS: ("units", "unit"), FILTERS: ("filters", "unit")}
_REFERENCE_IMAGES = 100  # the reference is slow


def blocks_of(model: Any) -> list[int]:
    """Layers or units with gates of each block; of filters, the units."""
    config = model.config
    if hasattr(config, "block_layers"):
        return list(config.block_layers)
    if hasattr(model, "unit_sizes"):
        return [len(model.unit_sizes)]
    if hasattr(model, "stage_gates"):
        return list(model.stage_gates)
    first, *others = config.stage_units
    return [first - 1, *others]  # the first unit has no gate


def cell_names(model: Any) -> list[str]:
    """Of each cell of a strip, the layer or unit that it stands for, numbered as in timelines."""
    if hasattr(model, "unit_sizes"):
        return [str(name) for name in model.unit_sizes]
    units = getattr(model.config, "units", None)
    if units is not None:
        return list(units)
    layers, count = hasattr(model.config, "block_layers"), sum(blocks_of(model))
    return [f"layer.{i}" if layers else f"units.{i + 1}" for i in range(count)]


def cells_of(model: Any, gates: Tensor) -> Tensor:
    """What a strip shows, float64 [N, cells]: gates, or of filters the fraction of each unit's that is on."""
    gates = gates.double()
    if not hasattr(model, "unit_sizes"):
        return gates
    return torch.stack([part.mean(1) for part in gates.split(list(model.unit_sizes.values()), 1)], 1)


def gates_of_task(kept: Record, task: str) -> Tensor:
    """Those of the branch that answers ``task``, or the only ones."""
    return kept.gates.get(task, next(iter(kept.gates.values())))


def ran_by_class(model: Any, kept: Record, task: str, classes: int) -> np.ndarray:
    """How much of each cell ran for the images of each class: [classes, cells], NaN of a class without images."""
    cells, labels = cells_of(model, gates_of_task(kept, task)), kept.labels[task]
    rows = [cells[labels == label].mean(0).numpy() for label in range(classes)]
    return np.stack(rows)


def facts(model: Any, fast: Any, name: str, data: Labelled, kept: Record, opened: Record) -> dict[str, Any]:
    """What a network did on ``data``, from the passes over it: with its own gates, and with every gate open."""
    blocks, count = blocks_of(model), len(data.images)
    plural, single = _WORDS.get(next(iter(kept.gates)), ("layers", "layer"))
    tasks, classes, notes = {}, {}, []
    sizes = model.config.classes if isinstance(model.config.classes, tuple) else (model.config.classes,)
    for task, number in zip(data.labels, sizes, strict=True):
        wrong, wrong_open = (share_interval(~one.correct(task), data.clusters) for one in (kept, opened))
        tasks[task] = {"error": wrong, "open_error": wrong_open}
        if task in kept.among_five:
            tasks[task]["top5"] = share_interval(kept.among_five[task], data.clusters)
        names, ran = class_names(data, task, number), ran_by_class(model, kept, task, number)
        classes[task] = [_class_row(label, names[label], kept, task, ran[label], blocks) for label in range(number)]
        missing = [shortened(row["name"]) for row in classes[task] if row["images"] == 0]
        if missing:
            notes.append(f"The data holds no image of {f'{task} ' * (len(data.labels) > 1)}class {', '.join(missing)}.")
    executed = mean_interval(kept.macs, data.clusters)
    dense = count_dense(model)
    opened_macs = opened.macs.mean().item()
    return {
        "schema": 3,
        "model": name,
        "images": count,
        "sampled": _sampled(kept),
        "unit": plural,
        "unit_one": single,
        "thresholds": own_thresholds(model),
        "tasks": tasks,
        "skipped": {key: mean_interval(1 - gates.double().mean(1), data.clusters) for key, gates in kept.gates.items()},
        "macs_dense": dense,
        "macs_executed": executed,
        "macs_open": opened_macs,
        "macs_saved": {
            "fused": 1 - opened_macs / dense,
            "gates": 1 - executed["mean"] / opened_macs,
            "both": 1 - executed["mean"] / dense,
        },
        "macs_rows": _macs_rows(fast, dense, kept, opened),
        "cells": by_block(cell_names(model), blocks),
        "ran": {key: by_block(cells_of(model, gates).mean(0).tolist(), blocks) for key, gates in kept.gates.items()},
        "kinds": {key: _kinds(gates) for key, gates in kept.gates.items()},
        "classes": classes,
        "notes": notes,
        "reference": reference(model, fast, data.images[:_REFERENCE_IMAGES]),
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "environment": {
            "processor": "{cpu}, {cores} cores".format(**machine.describe()),
            "threads": str(torch.get_num_threads()),
            "kernels": dsn_kernels._C.build_info()["isa"],
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "commit": machine.source_commit() or "-",
        },
    }


@torch.inference_mode()
def reference(model: Any, fast: Any, images: Tensor) -> dict[str, Any]:
    """How far the accelerated network is from plain PyTorch: the largest difference of outputs relative to the largest
    output, and the fraction of gates that are the same."""
    got, expected = as_outputs(fast(images)), as_outputs(model(images))
    same = [fast.last_gates[name] == gates for name, gates in model.last_gates.items()]
    return {
        "images": len(images),
        "relative_difference": relative_error(got, expected),
        "same_gates": torch.cat([rows.flatten() for rows in same]).double().mean().item(),
    }


def _sampled(kept: Record) -> dict[str, Any] | None:
    """What the images are made of, how many of these there are, and what that does to the variance of each error."""
    if kept.clusters is None:
        return None
    effects = {task: design_effect((~kept.correct(task)).double(), kept.clusters) for task in kept.labels}
    return {"what": kept.clusters.what, "sources": len(kept.clusters.members.unique()), "design_effects": effects}


def _class_row(
    label: int, name: str, kept: Record, task: str, ran: np.ndarray, blocks: Sequence[int]
) -> dict[str, Any]:
    own = kept.labels[task] == label
    count = int(own.sum())
    if count == 0:
        return {"label": label, "name": name, "images": 0}
    return {
        "label": label,
        "name": name,
        "images": count,
        "accuracy": share_interval(kept.correct(task)[own], part_of(kept.clusters, own)),
        "skipped": 1 - float(ran.mean()),
        "ran": by_block(ran.tolist(), blocks),
    }


def _kinds(gates: Tensor) -> dict[str, int]:
    kinds = gate_kinds(gates.numpy())
    return {"gates": gates.shape[1], **{key: int(values.sum()) for key, values in kinds._asdict().items()}}


def _macs_rows(fast: Any, dense: int, kept: Record, opened: Record) -> dict[str, float]:
    """MACs per image, by what they are."""
    rows = {"dense": float(dense), "all gates open": opened.macs.mean().item()}
    if hasattr(fast, "macs"):
        layers = layer_counts(fast, kept.gates, len(kept.macs))
        rows["as papers count"] = sum((layer.ran * layer.dense).mean().item() for layer in layers)
    return rows | {"executed": kept.macs.mean().item()}
