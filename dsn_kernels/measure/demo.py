"""The demo's measurements: a trained network on real digits, with its layers skipped, beside the dense network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import dsn_kernels
from dsn_models import UserError
from dsn_models.data import CoarseFineDataset
from dsn_models.dual_skipping import BRANCHES, DualSkippingNetwork

from . import machine
from .baselines import relative_error
from .compare import compare


@dataclass(frozen=True)
class DemoRun:
    """What :func:`run_demo` found.

    Attributes:
        document: the facts, as ``dsn demo --json`` writes them.
        images: the test images, float32 [N, C, H, W].
        labels, predictions: per branch, int64 [N].
        gates: per branch, uint8 [N, L].
        block_layers: gated layers of each block of a branch.
    """

    document: dict[str, Any]
    images: Tensor
    labels: dict[str, Tensor]
    predictions: dict[str, Tensor]
    gates: dict[str, Tensor]
    block_layers: tuple[int, ...]


def run_demo(
    model: nn.Module,
    name: str,
    dataset: CoarseFineDataset,
    *,
    batches: tuple[int, ...] = (1, 8, 64),
    seconds: float = 1.0,
    on_step: Callable[[str, float], None] = lambda text, fraction: None,
) -> DemoRun:
    """Classifies ``dataset`` with ``accelerate(model)``, holds it against ``model`` and times it.

    The times are of one call on ``batch`` images of the data set: the dense network in eager PyTorch, the accelerated
    network with every layer running, and with the gates as the network decides.

    Args:
        model: a ``dsn_models.DualSkippingNetwork``.
        name: what the document calls it.
        dataset: at least as many images as the largest batch.
        batches: batch sizes to time.
        seconds: of timing per contestant and batch size.
        on_step: told what is going on, and which part of it is done.

    Raises:
        UserError: the model has no gates, or there are too few images.
    """
    if not isinstance(model, DualSkippingNetwork):
        raise UserError(f"{name} has no gates to show; expected a dual skipping network")
    if len(dataset) < max(batches):
        raise UserError(f"there are {len(dataset)} images; expected at least {max(batches)}")
    model = model.eval()
    fast: Any = dsn_kernels.accelerate(model)
    on_step("making images", 0.0)
    images, coarse, fine = dataset.batch(torch.arange(len(dataset)))
    labels = {"coarse": coarse, "fine": fine}

    logits: dict[str, list[Tensor]] = {branch: [] for branch in BRANCHES}
    taken: dict[str, list[Tensor]] = {branch: [] for branch in BRANCHES}
    difference, same_gates = 0.0, True
    with torch.inference_mode():
        for i, part in enumerate(images.split(100)):
            on_step("classifying", 100 * i / len(images))
            got, expected = fast(part), model(part)
            difference = max(difference, relative_error(got, expected))
            for branch, output in zip(BRANCHES, got, strict=True):
                logits[branch].append(output)
                taken[branch].append(fast.last_gates[branch].clone())
                same_gates &= torch.equal(fast.last_gates[branch], model.last_gates[branch])
    gates = {branch: torch.cat(parts) for branch, parts in taken.items()}
    predictions = {branch: torch.cat(parts).argmax(1) for branch, parts in logits.items()}
    executed = fast.macs(gates).double().mean().item()

    latency = compare(model, fast, images, batches, seconds, on_step)
    document = {
        "schema": 1,
        "model": name,
        "images": len(dataset),
        "accuracy": {b: (predictions[b] == labels[b]).double().mean().item() for b in BRANCHES},
        "skipped": {b: 1 - gates[b].double().mean().item() for b in BRANCHES},
        "ran": {b: gates[b].double().mean(0).tolist() for b in BRANCHES},
        "macs_dense": int(fast.dense_macs),
        "macs_executed": executed,
        "macs_saved": 1 - executed / fast.dense_macs,
        "reference": {"same_gates": same_gates, "relative_difference": difference},
        "latency": latency,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": machine.source_commit(),
        "machine": machine.describe(),
    }
    return DemoRun(document, images, labels, predictions, gates, model.config.block_layers)
