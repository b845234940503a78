"""Accuracy and skip ratio."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from ..computation import used_parameters
from ..data import CoarseFineDataset
from ..dual_skipping import BRANCHES, DualSkippingNetwork, Thresholds
from ..tensors import TOP, among_largest


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
        model: in eval mode; a network of two branches, accelerated or not, or one of one task. A gated one leaves
            ``last_gates``, uint8 [B, L] by branch, or under any one name if it has one task.
        dataset: read in order.
        task: "both" for networks of two branches, else the network's task.
        batch: images at a time.
        thresholds: of the gates; the model's own if not given.
        gated: False forces every layer to run.

    Returns:
        ``{"images": n, "coarse": {...}, "fine": {...}}`` with ``accuracy`` and, for gated networks, ``skipped`` (mean
        fraction of the branch's layers) and ``ran`` (per layer, the fraction of images that ran it), all in [0, 1]; of
        a task of more than five classes also ``top5``, how often the label is among the five largest logits; of a dual
        skipping network that is not accelerated, ``parameters``, how many an image uses on average.
    """
    tasks = BRANCHES if task == "both" else (task,)
    correct, among_five = dict.fromkeys(tasks, 0), dict[str, int]()
    ran: dict[str, torch.Tensor] = {}
    device = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0)).device
    for indices in torch.arange(len(dataset)).split(batch):
        images, coarse, fine = dataset.batch(indices)
        labels = {"coarse": coarse, "fine": fine}
        options: dict[str, Any] = {} if thresholds is None else {"thresholds": thresholds}
        if not gated:
            options["forced_gates"] = all_open(model, len(images))
        outputs = model(images.to(device), **options)
        for name, logits in zip(tasks, outputs if task == "both" else (outputs,), strict=True):
            correct[name] += int((logits.argmax(1).cpu() == labels[name]).sum())
            if logits.shape[1] > TOP:
                among_five[name] = among_five.get(name, 0) + int(among_largest(logits.cpu(), labels[name]).sum())
        gates: dict[str, torch.Tensor] = getattr(model, "last_gates", {})
        for name, taken in zip(tasks, gates.values(), strict=False):
            ran[name] = ran.get(name, 0) + taken.sum(0, dtype=torch.int64).cpu()
    count = len(dataset)
    result: dict[str, Any] = {"images": count}
    for name in tasks:
        result[name] = {"accuracy": correct[name] / max(count, 1)}
        if name in among_five:
            result[name]["top5"] = among_five[name] / max(count, 1)
        if name in ran:
            fractions = ran[name].double() / max(count, 1)
            result[name] |= {"skipped": 1 - fractions.mean().item(), "ran": fractions.tolist()}
    if isinstance(model, DualSkippingNetwork):
        for name, used in used_parameters(model, {name: result[name]["ran"] for name in BRANCHES}).items():
            result[name]["parameters"] = used
    return result


def all_open(model: Any, batch: int) -> dict[str, torch.Tensor]:
    """Forced gates that run everything: uint8 ones [batch, L] for each entry of the model's ``gate_counts``."""
    device = next(model.parameters()).device
    return {name: torch.ones(batch, n, dtype=torch.uint8, device=device) for name, n in model.gate_counts.items()}
