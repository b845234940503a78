"""What a network's features look like after the shared layers and between its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dsn_models.dual_skipping import BRANCHES, DualSkippingNetwork
from dsn_models.resnet import OnResNet, ResNet


def _points(model: Any) -> Iterator[tuple[str, str, nn.Module]]:
    """Row, column, and the module whose input is shown."""
    if isinstance(model, DualSkippingNetwork):
        for branch in BRANCHES:
            for i, block in enumerate(getattr(model, branch).blocks):
                yield branch, f"transition {i}" if i else "shared", block
        return
    network: Any = getattr(model, "backbone", model)
    if isinstance(network, ResNet | OnResNet):
        residual: Any = network
        first = 0
        for stage, units in enumerate(residual.config.stage_units):
            unit = residual.units[first]
            yield "", f"stage {stage}" if stage else "shared", unit.shortcut
            first += units
        yield "", f"stage {len(residual.config.stage_units)}", residual.head


@torch.inference_mode()
def feature_maps(model: Any, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Feature maps of the first shared layer and of the transitions, or of a residual network's stages.

    The mean over channels of the absolute values, scaled to [0, 1] for each image: Dual Skipping Networks, section 4.3
    and figure 5.

    Args:
        model: a network of ``dsn_models`` in ``eval()``.
        images: [N, C, H, W].

    Returns:
        By branch ("" where there is one), by layer: float [N, h, w]. Empty for a network of another shape.
    """
    maps: dict[str, dict[str, Tensor]] = {}

    def keep(row: str, column: str, x: Tensor) -> None:
        mean = x.abs().mean(1)
        low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
        maps.setdefault(row, {})[column] = (mean - low) / (high - low).clamp_min(1e-12)

    with ExitStack() as stack:
        for row, column, module in _points(model):
            handle = module.register_forward_pre_hook(
                lambda _, args, row=row, column=column: keep(row, column, args[0])
            )
            stack.callback(handle.remove)
        model(images)
    return maps
