"""How much an image needs a layer, a unit or a filter: the rise of its loss when that one alone is skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...gaternet import FILTERS, GaterNet
from ..evaluation import all_open


@torch.no_grad()
def layer_harm(model: Any, images: Tensor, labels: Mapping[str, Tensor], shut: Sequence[int] = ()) -> dict[str, Tensor]:
    """By gate name [B, L]: how much each image's cross-entropy rises when the layer of that gate is skipped too.

    Args:
        model: in ``eval()``; with branches, the logits of each stand in the order of ``gate_counts``.
        images: [B, C, H, W].
        labels: int64 [B] by gate name.
        shut: the layers that are skipped beside it, and in what the loss is compared with; the others run.
    """

    def losses(skipped: Sequence[int]) -> dict[str, Tensor]:
        forced = all_open(model, len(images))
        for gates in forced.values():
            gates[:, list(skipped)] = 0
        outputs = model(images, forced_gates=forced)
        pairs = zip(labels.items(), outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
        return {name: F.cross_entropy(logits, wanted, reduction="none") for (name, wanted), logits in pairs}

    before = losses(shut)
    after = [losses([*shut, layer]) for layer in range(max(model.gate_counts.values()))]
    return {name: torch.stack([loss[name] - before[name] for loss in after], 1) for name in labels}


def filter_harm(model: GaterNet, images: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
    """The mean rise of the cross-entropy, to second order, when one filter is shut: float64 [c].

    ``mean(-d + d^2 / 2)``, d [B, c] the gradient of an image's cross-entropy with respect to a mask of ones, with the
    outer product of gradients for the Hessian: a network has too many filters to shut each in turn. Arguments as those
    of :func:`layer_harm`.
    """
    harm = torch.zeros(model.num_gates, dtype=torch.float64, device=images.device)
    for x, wanted in zip(images.split(100), labels[FILTERS].split(100), strict=True):
        ones = torch.ones(len(x), model.num_gates, device=x.device, requires_grad=True)
        handle = model.gate.register_forward_hook(lambda module, args, output, ones=ones: ones)
        try:
            loss = F.cross_entropy(model(x), wanted, reduction="sum")
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(loss, ones)
        harm += (gradient.double().square() / 2 - gradient.double()).sum(0)
    return harm / len(images)
