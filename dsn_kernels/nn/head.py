"""The twin of a classifier head."""

from __future__ import annotations

from torch import Tensor, nn

from dsn_models.densenet import Head as Reference

from .. import ops
from .canonical import canonical
from .packing import Packer, pack_head


class Head(nn.Module):
    """Same call and output as `dsn_models.densenet.Head` in ``eval()``: [B, C, H, W] to logits [B, classes]."""

    weights: Tensor

    def __init__(self, module: Reference) -> None:
        super().__init__()
        module, packer = canonical(module), Packer()
        pack_head(packer, module, [])
        self.classes = module.classifier.out_features
        self.register_buffer("weights", packer.tensor())

    def forward(self, x: Tensor) -> Tensor:
        return ops.head(x, self.weights, self.classes)
