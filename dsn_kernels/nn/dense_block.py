"""The twin of one gated dense block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsn_models.dual_skipping import SkipDenseBlock

from .. import _C, ops
from .canonical import canonical
from .packing import Packer, pack_dense_block


class DenseBlock(nn.Module):
    """Same call and outputs as `dsn_models.dual_skipping.SkipDenseBlock` in ``eval()``.

    ``forward(x, threshold=0.5, forced=None)``: x float32 [B, C, H, W] to the block's output, the gates taken uint8
    [B, L] and their scores float32 [B, L].
    """

    weights: Tensor

    def __init__(self, block: SkipDenseBlock) -> None:
        super().__init__()
        block, packer = canonical(block), Packer()
        fields = pack_dense_block(packer, block)
        self.growth, self.layers, self.bottleneck = fields["out_channels"], fields["layers"], fields["bottleneck"]
        self.gate = next(name for name, code in _C.GATES.items() if code == fields["gate"])
        self.merge: str = block.merge
        self.register_buffer("weights", packer.tensor())

    def forward(self, x: Tensor, threshold: float = 0.5, forced: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        y, gates, scores, _ = ops.dense_block(
            x,
            self.weights,
            torch.full((self.layers,), float(threshold), dtype=torch.float32),
            forced,
            growth=self.growth,
            layers=self.layers,
            bottleneck=self.bottleneck,
            gate=self.gate,
            merge=self.merge,
        )
        return y, gates, scores
