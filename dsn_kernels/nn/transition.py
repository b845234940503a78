"""The twin of a transition."""

from __future__ import annotations

from torch import Tensor, nn

from dsn_models.densenet import Transition as Reference

from .. import ops
from .canonical import canonical
from .packing import Packer, pack_transition


class Transition(nn.Module):
    """Same call and output as `dsn_models.densenet.Transition` in ``eval()``.

    [B, C, H, W] to [B, O, H // 2, W // 2].
    """

    weights: Tensor

    def __init__(self, module: Reference) -> None:
        super().__init__()
        module, packer = canonical(module), Packer()
        pack_transition(packer, module, [])
        self.out_channels = module.conv.out_channels
        self.register_buffer("weights", packer.tensor())

    def forward(self, x: Tensor) -> Tensor:
        return ops.preact_conv2d(x, self.weights, self.out_channels)
