"""What a network did on each image of a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dsn_models import UserError
from dsn_models.data import CoarseFineDataset
from dsn_models.data.base import Batch, Clusters
from dsn_models.dual_skipping import BRANCHES
from dsn_models.tensors import TOP, among_largest

from .networks import as_outputs, gate_counts, open_gates


class Labelled(NamedTuple):
    """Images float32 [N, C, H, W], their labels int64 [N] by task, and the names of the classes that have some.

    ``clusters`` says what the images share, None of independent ones.
    """

    images: Tensor
    labels: dict[str, Tensor]
    names: Mapping[str, Sequence[str]] = MappingProxyType({})
    clusters: Clusters | None = None

    def part(self, indices: Tensor) -> Labelled:
        labels = {name: labels[indices] for name, labels in self.labels.items()}
        return Labelled(self.images[indices], labels, self.names, part_of(self.clusters, indices))


class LabelledDataset(CoarseFineDataset):
    """Images in memory as a data set; a task without labels has none but 0."""

    def __init__(self, data: Labelled) -> None:
        self.data = data
        zeros = torch.zeros(len(data.images), dtype=torch.int64)
        self.coarse, self.fine = (data.labels.get(task, zeros) for task in BRANCHES)

    @property
    def clusters(self) -> Clusters | None:
        return self.data.clusters

    def __len__(self) -> int:
        return len(self.data.images)

    def batch(self, indices: Tensor) -> Batch:
        return self.data.images[indices], self.coarse[indices], self.fine[indices]


def part_of(clusters: Clusters | None, indices: Tensor) -> Clusters | None:
    """The same of some images: ``indices`` int64 [M], or bool [N]."""
    return None if clusters is None else clusters._replace(members=clusters.members[indices])


def class_names(data: Labelled, task: str, classes: int) -> Sequence[str]:
    """The names of a task's classes, or their numbers."""
    return data.names.get(task) or [str(label) for label in range(classes)]


def read(dataset: CoarseFineDataset, task: str, images: int | None = None, batch: int = 250) -> Labelled:
    """Images of a data set in order: all, or ``images`` of them spread evenly. ``task`` is "both", "coarse" or "fine".

    Raises:
        UserError: the data set is empty.
    """
    if len(dataset) == 0:
        raise UserError("the test data is empty; expected at least one image")
    count = min(images or len(dataset), len(dataset))
    chosen = torch.arange(count) * len(dataset) // count
    parts = [dataset.batch(indices) for indices in chosen.split(batch)]
    pixels, coarse, fine = (torch.cat(column) for column in zip(*parts, strict=True))
    labels = {"coarse": coarse, "fine": fine}
    chosen_labels = labels if task == "both" else {task: labels[task]}
    return Labelled(pixels, chosen_labels, dataset.class_names, part_of(dataset.clusters, chosen))


@dataclass(frozen=True)
class Record:
    """One pass over N images.

    Attributes:
        losses: cross-entropy by task, float64 [N].
        predictions, labels: by task, int64 [N].
        gates: by their name in ``last_gates``, uint8 [N, L].
        scores: likewise, float32 [N, L].
        macs: executed, float64 [N].
        clusters: what the images share, None of independent ones.
        among_five: by task of more than five classes, whether the label is among the five largest logits, bool [N].
    """

    losses: dict[str, Tensor]
    predictions: dict[str, Tensor]
    labels: dict[str, Tensor]
    gates: dict[str, Tensor]
    scores: dict[str, Tensor]
    macs: Tensor
    clusters: Clusters | None = None
    among_five: dict[str, Tensor] = field(default_factory=dict)

    def correct(self, task: str) -> Tensor:
        """bool [N]."""
        return self.predictions[task] == self.labels[task]

    @property
    def loss(self) -> float:
        """Mean cross-entropy, the mean over tasks."""
        return sum(loss.mean().item() for loss in self.losses.values()) / len(self.losses)

    @property
    def error(self) -> float:
        """Fraction of wrong answers, the mean over tasks."""
        return 1 - sum(self.correct(task).double().mean().item() for task in self.labels) / len(self.labels)


@torch.inference_mode()
def record(
    fast: Any,
    data: Labelled,
    *,
    thresholds: Mapping[str, float] | None = None,
    all_open: bool = False,
    batch: int = 250,
    on_batch: Callable[[float], None] = lambda done: None,
) -> Record:
    """Runs an accelerated network over ``data`` and keeps what it did.

    Args:
        fast: made by ``dsn_kernels.accelerate``; images to one or two tensors of logits.
        data: with a label of every task that ``fast`` has.
        thresholds: of the gates; the network's own if not given.
        all_open: every gate is forced open.
        batch: images at a time.
        on_batch: told the fraction done.
    """
    tasks = list(data.labels)
    counts = gate_counts(fast)
    kept: list[dict[str, list[Tensor]]] = [{name: [] for name in names} for names in (tasks, tasks, counts, counts)]
    losses, predictions, gates, scores = kept
    macs = []
    among_five: dict[str, list[Tensor]] = {}
    for indices in torch.arange(len(data.images)).split(batch):
        images = data.images[indices]
        options: dict[str, Any] = {} if thresholds is None else {"thresholds": dict(thresholds)}
        if all_open and counts:
            options["forced_gates"] = open_gates(fast, len(images))
        outputs, executed = counted(fast, images, options)
        for name, logits in zip(tasks, outputs, strict=True):
            losses[name].append(F.cross_entropy(logits.double(), data.labels[name][indices], reduction="none"))
            predictions[name].append(logits.argmax(1))
            if logits.shape[1] > TOP:
                among_five.setdefault(name, []).append(among_largest(logits, data.labels[name][indices]))
        for name in counts:
            gates[name].append(fast.last_gates[name].clone())
            scores[name].append(fast.last_scores[name].clone())
        macs.append(executed)
        on_batch(min(1.0, (int(indices[-1]) + 1) / len(data.images)))
    joined = [{name: torch.cat(parts) for name, parts in found.items()} for found in (*kept, among_five)]
    return Record(joined[0], joined[1], data.labels, joined[2], joined[3], torch.cat(macs), data.clusters, joined[4])


def counted(fast: Any, images: Tensor, options: dict[str, Any]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Outputs and MACs [B]; of a network with only some parts replaced, the mean of the batch for every sample."""
    if hasattr(fast, "last_macs"):
        return as_outputs(fast(images, **options)), fast.last_macs.double()
    with FlopCounterMode(display=False) as counter:
        outputs = as_outputs(fast(images, **options))
    return outputs, torch.full((len(images),), counter.get_total_flops() / 2 / len(images), dtype=torch.float64)


def tasks_of(model: Any) -> tuple[str, ...]:
    """``"both"`` of a network of two branches, else what its one task may be."""
    return ("both",) if isinstance(model.config.classes, tuple) else BRANCHES
