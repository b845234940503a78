"""What every backend leaves of a call."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """Logits float32 [B, logits], the stored map or [B, 0, 1, 1], gates uint8 [B, L], scores float32 [B, L] and MACs
    int64 [B]."""

    logits: Tensor
    map: Tensor
    gates: Tensor
    scores: Tensor
    macs: Tensor
