"""What a network did on each image of a data set, and the confidence that follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dsn_models import UserError
from dsn_models.data import CoarseFineDataset
from dsn_models.dual_skipping import BRANCHES

from .networks import as_outputs, gate_counts

Z95 = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


class Labelled(NamedTuple):
    """Images float32 [N, C, H, W], their labels int64 [N] by task, and the names of the classes that have some."""

    images: Tensor
    labels: dict[str, Tensor]
    names: Mapping[str, Sequence[str]] = MappingProxyType({})

    def part(self, indices: Tensor) -> Labelled:
        labels = {name: labels[indices] for name, labels in self.labels.items()}
        return Labelled(self.images[indices], labels, self.names)


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
    return Labelled(pixels, labels if task == "both" else {task: labels[task]}, dataset.class_names)


@dataclass(frozen=True)
class Record:
    """One pass over N images.

    Attributes:
        losses: cross-entropy by task, float64 [N].
        predictions, labels: by task, int64 [N].
        gates: by their name in ``last_gates``, uint8 [N, L].
        scores: likewise, float32 [N, L].
        macs: executed, float64 [N].
    """

    losses: dict[str, Tensor]
    predictions: dict[str, Tensor]
    labels: dict[str, Tensor]
    gates: dict[str, Tensor]
    scores: dict[str, Tensor]
    macs: Tensor

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
    losses: dict[str, list[Tensor]] = {name: [] for name in tasks}
    predictions: dict[str, list[Tensor]] = {name: [] for name in tasks}
    gates: dict[str, list[Tensor]] = {name: [] for name in counts}
    scores: dict[str, list[Tensor]] = {name: [] for name in counts}
    macs = []
    for indices in torch.arange(len(data.images)).split(batch):
        images = data.images[indices]
        options: dict[str, Any] = {} if thresholds is None else {"thresholds": dict(thresholds)}
        if all_open and counts:
            options["forced_gates"] = {
                name: torch.ones(len(images), n, dtype=torch.uint8) for name, n in counts.items()
            }
        outputs, executed = counted(fast, images, options)
        for name, logits in zip(tasks, outputs, strict=True):
            losses[name].append(F.cross_entropy(logits.double(), data.labels[name][indices], reduction="none"))
            predictions[name].append(logits.argmax(1))
        for name in counts:
            gates[name].append(fast.last_gates[name].clone())
            scores[name].append(fast.last_scores[name].clone())
        macs.append(executed)
        on_batch(min(1.0, (int(indices[-1]) + 1) / len(data.images)))
    joined = [{name: torch.cat(parts) for name, parts in kept.items()} for kept in (losses, predictions, gates, scores)]
    return Record(joined[0], joined[1], data.labels, joined[2], joined[3], torch.cat(macs))


def counted(fast: Any, images: Tensor, options: dict[str, Any]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Outputs and MACs [B]; of a network with only some parts replaced, the mean of the batch for every sample."""
    if hasattr(fast, "last_macs"):
        return as_outputs(fast(images, **options)), fast.last_macs.double()
    with FlopCounterMode(display=False) as counter:
        outputs = as_outputs(fast(images, **options))
    return outputs, torch.full((len(images),), counter.get_total_flops() / 2 / len(images), dtype=torch.float64)


def fraction_interval(count: int, total: int) -> dict[str, float]:
    """``count / total`` and its 95 % confidence interval after Wilson."""
    share = count / total
    centre = (share + Z95**2 / (2 * total)) / (1 + Z95**2 / total)
    half = Z95 / (1 + Z95**2 / total) * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    return {"mean": share, "low": max(0.0, min(share, centre - half)), "high": min(1.0, max(share, centre + half))}


def mean_interval(values: Tensor) -> dict[str, float]:
    """Mean of ``values`` [N] and its 95 % confidence interval, of the normal approximation."""
    values = values.double()
    mean = values.mean().item()
    half = Z95 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half}


def tasks_of(model: Any) -> tuple[str, ...]:
    """``"both"`` of a network of two branches, else what its one task may be."""
    return ("both",) if isinstance(model.config.classes, tuple) else BRANCHES
