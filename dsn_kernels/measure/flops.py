"""Multiply-accumulates of a network: dense, and executed per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dsn_models import UserError


@dataclass(frozen=True)
class FlopCount:
    """Work of one forward pass in multiply-accumulates (MACs; 2 FLOPs each) of convolutions and linear layers.

    Attributes:
        dense: MACs per sample when every layer runs in the reference's order of operations.
        executed: MACs each sample took, int64 [B].
        gates: per branch, the fraction of (sample, layer) pairs that ran; empty for a network without gates.
    """

    dense: int
    executed: Tensor
    gates: dict[str, float]

    @property
    def saved(self) -> float:
        """1 - mean(executed) / dense."""
        return 1.0 - self.executed.double().mean().item() / self.dense


def count_dense(model: Any) -> int:
    """MACs per sample of a plain network: half of what ``torch.utils.flop_counter`` counts for one image.

    A gated network is counted as its ``dense_equivalent()``, without the gates.
    """
    config = model.config
    network = model.dense_equivalent() if hasattr(model, "dense_equivalent") else model
    weight = next(model.parameters())
    image = torch.zeros(
        1, config.in_channels, config.image_size, config.image_size, dtype=weight.dtype, device=weight.device
    )
    training = network.training
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    network.train(training)
    return counter.get_total_flops() // 2


def flops(model: Any, images: Tensor | None = None) -> FlopCount:
    """Dense and executed MACs of ``model``.

    An accelerated model executes what its gates let run. A reference model computes every layer and then masks, so
    its executed MACs are the dense ones whatever its gates say.

    Args:
        model: made by ``dsn_kernels.accelerate``, ``dsn_models.create`` or ``dsn_models.load``.
        images: the batch to run and count, [B, C, H, W]; without it, the last batch that ``model`` saw is counted.

    Raises:
        UserError: ``images`` is not given and ``model`` has not run, or the batch was empty.
    """
    if images is not None:
        with torch.inference_mode():
            model(images)
    gates = getattr(model, "last_gates", {})
    if images is None and not gates:
        raise UserError("the model has not run yet and no images are given; expected one of both")
    batch = len(images) if images is not None else len(next(iter(gates.values())))
    if batch == 0:
        raise UserError("the batch is empty; expected at least one image to count")
    ratios = {name: taken.double().mean().item() for name, taken in gates.items()}
    if hasattr(model, "macs"):
        return FlopCount(int(model.dense_macs), model.macs(gates), ratios)
    dense = count_dense(model)
    return FlopCount(dense, torch.full((batch,), dense, dtype=torch.int64), ratios)
