"""Where the gates begin: trained layers that matter least begin to be skipped, for the images that need them least.

The paper says that gates join a network trained without them, not how they begin. This is our reading, an option: gates
that all begin open, under any pressure to shut, arrive at the threshold together and stay there, neither open nor shut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import CoarseFineDataset
from ..dual_skipping import BRANCHES, DualSkippingNetwork
from ..gates import PooledGate
from .evaluation import all_open
from .losses import open_gates

_IMAGES = 512
_SPREAD = 0.25  # standard deviation of a begun gate's logit over the images
_RIDGE = 1e-2


@torch.no_grad()
def _pooled_inputs(model: DualSkippingNetwork, images: Tensor) -> dict[str, list[Tensor]]:
    """The pooled input [B, C] of every gate of each branch, every layer running."""
    pooled: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
    handles = []
    for name in BRANCHES:
        for gate in getattr(model, name).modules():
            if isinstance(gate, PooledGate):
                keep = pooled[name].append
                handles.append(gate.linear.register_forward_pre_hook(lambda _, args, keep=keep: keep(args[0])))
    model(images, forced_gates=all_open(model, len(images)))
    for handle in handles:
        handle.remove()
    return pooled


@torch.no_grad()
def _harm(model: DualSkippingNetwork, images: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """For each branch [B, L]: how much each image's cross-entropy rises when that layer alone is skipped."""

    def losses(forced: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = zip(BRANCHES, model(images, forced_gates=forced), strict=True)
        return {name: F.cross_entropy(logits, labels[name], reduction="none") for name, logits in outputs}

    dense = losses(all_open(model, len(images)))
    layers = model.coarse.num_layers
    columns: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
    for layer in range(layers):
        forced = all_open(model, len(images))
        for gates in forced.values():
            gates[:, layer] = 0
        skipped = losses(forced)
        for name in BRANCHES:
            columns[name].append(skipped[name] - dense[name])
    return {name: torch.stack(column, 1) for name, column in columns.items()}


@torch.no_grad()
def calibrate_gates(model: DualSkippingNetwork, dataset: CoarseFineDataset, target: tuple[float, float]) -> None:
    """Sets every gate, in place, so that about a fraction ``target`` (coarse, fine) of each branch's layers runs.

    Of a branch with L layers, the ``round(2 (1 - target) L)`` whose absence harms the loss least begin half open: w and
    b follow from a ridge regression of the harm to each image on the pooled input, shifted to its median and scaled to
    a standard deviation of 1/4. The others begin with score 1 whatever their input. Measured on the first 512 images.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    images, coarse, fine = dataset.batch(torch.arange(min(_IMAGES, len(dataset))))
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    pooled = _pooled_inputs(model, images)
    harm = _harm(model, images, {"coarse": coarse.to(device), "fine": fine.to(device)})
    open_gates(model)
    for name, fraction in zip(BRANCHES, target, strict=True):
        gates = [gate for gate in getattr(model, name).modules() if isinstance(gate, PooledGate)]
        count = min(round(2 * (1 - fraction) * len(gates)), len(gates))
        for layer in harm[name].mean(0).argsort()[:count].tolist():
            x = pooled[name][layer].double()
            scale = x.std(0).clamp(min=1e-6)
            centred = (x - x.mean(0)) / scale
            wanted = harm[name][:, layer].double().sign() * harm[name][:, layer].double().abs().sqrt()
            gram = centred.T @ centred / len(x) + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=device)
            weight = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean()) / len(x)) / scale
            logit = x @ weight
            weight = weight * _SPREAD / logit.std().clamp(min=1e-12)
            gates[layer].linear.weight.copy_(weight[None])
            gates[layer].linear.bias.copy_(-(x @ weight).median()[None])
    model.train(training)


@torch.no_grad()
def recentre_gates(model: DualSkippingNetwork, dataset: CoarseFineDataset) -> None:
    """Shifts the bias of every calibrated gate, in place, so that it is again open for half of the images.

    The weights before a frozen gate go on learning, and its logit drifts with them. Measured on the first 512 images,
    the gates deciding as in inference; a gate with zero weight, which does not look at its input, stays as it is.
    """

    def shift(linear: Any, args: tuple[Tensor, ...]) -> None:
        if linear.weight.any():
            linear.bias.copy_(-(args[0] @ linear.weight[0]).median()[None])

    training = model.training
    model.eval()
    images, _, _ = dataset.batch(torch.arange(min(_IMAGES, len(dataset))))
    gates = [gate for gate in model.modules() if isinstance(gate, PooledGate)]
    handles = [gate.linear.register_forward_pre_hook(shift) for gate in gates]
    model(images.contiguous(memory_format=torch.channels_last))
    for handle in handles:
        handle.remove()
    model.train(training)
