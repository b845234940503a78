"""Accuracy and skip ratio."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..data import CoarseFineDataset
from ..dual_skipping import BRANCHES, Thresholds


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: CoarseFineDataset,
    *,
    task: str = "both",
    batch: int = 250,
    thresholds: Thresholds | None = None,
    gated: bool = True,
) -> dict[str, Any]:
    """Accuracy and, of gated networks, the fraction of layers skipped.

    Args:
        model: in eval mode; a dual skipping network, its accelerated twin, or a baseline of one task.
        dataset: read in order.
        task: "both" for dual skipping networks, else the task of the baseline.
        batch: images at a time.
        thresholds: of the gates; the model's own if not given.
        gated: False forces every layer to run.

    Returns:
        ``{"images": n, "coarse": {...}, "fine": {...}}`` with ``accuracy`` and, for gated networks, ``skipped`` (mean
        fraction of the branch's layers) and ``ran`` (per layer, the fraction of images that ran it), all in [0, 1].
    """
    tasks = BRANCHES if task == "both" else (task,)
    correct = dict.fromkeys(tasks, 0)
    ran: dict[str, torch.Tensor] = {}
    for indices in torch.arange(len(dataset)).split(batch):
        images, coarse, fine = dataset.batch(indices)
        labels = {"coarse": coarse, "fine": fine}
        if task == "both":
            forced = None if gated else all_open(model, len(images))
            outputs = model(images, forced_gates=forced, thresholds=thresholds)
            for name in tasks:
                taken = model.last_gates[name].sum(0, dtype=torch.int64).cpu()  # type: ignore[index, operator, union-attr]
                ran[name] = ran.get(name, 0) + taken
        else:
            outputs = (model(images),)
        for name, logits in zip(tasks, outputs, strict=True):
            correct[name] += int((logits.argmax(1).cpu() == labels[name]).sum())
    count = len(dataset)
    result: dict[str, Any] = {"images": count}
    for name in tasks:
        result[name] = {"accuracy": correct[name] / max(count, 1)}
        if name in ran:
            fractions = ran[name].double() / max(count, 1)
            result[name] |= {"skipped": 1 - fractions.mean().item(), "ran": fractions.tolist()}
    return result


def all_open(model: nn.Module, batch: int) -> dict[str, torch.Tensor]:
    """Forced gates that run every layer of a dual skipping network: uint8 ones [batch, L] per branch."""
    return {name: torch.ones(batch, getattr(model, name).num_layers, dtype=torch.uint8) for name in BRANCHES}
