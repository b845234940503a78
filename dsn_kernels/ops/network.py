"""A whole network in one operator: each worker walks one sample through it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _C


@dataclass(frozen=True)
class Instruction:
    """One step of a plan; the fields are those of ``Instruction`` in csrc/common/plan.h, in its order."""

    op: int
    src: int = -1
    dst: int = -1
    in_channels: int = 0
    out_channels: int = 0
    layers: int = 0
    bottleneck: int = 0
    gate: int = 0
    merge: int = 0
    weights: int = 0
    first_gate: int = 0
    guide: int = -1
    out_offset: int = 0


@dataclass
class Plan:
    """A network as the kernels run it: buffers (channels, height, width) and the instructions that fill them."""

    buffers: list[tuple[int, int, int]] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)

    def buffer(self, channels: int, height: int, width: int) -> int:
        """Adds a buffer; returns its number."""
        self.buffers.append((channels, height, width))
        return len(self.buffers) - 1

    def add(self, op: str, **fields: int) -> None:
        self.code.append(Instruction(op=_C.OPS[op], **fields))

    def words(self) -> Tensor:
        """What :func:`network` takes as ``plan``: int64, buffers first, then the instructions."""
        buffers = [n for sizes in self.buffers for n in sizes]
        return torch.tensor([len(self.buffers), *buffers, *(n for i in self.code for n in vars(i).values())])

    @property
    def gates(self) -> int:
        """Gated layers of all blocks."""
        return max((i.first_gate + i.layers for i in self.code if i.op == _C.OPS["dense_block"]), default=0)

    @property
    def logits(self) -> int:
        """Outputs of all heads."""
        return max((i.out_offset + i.out_channels for i in self.code if i.op == _C.OPS["head"]), default=0)


def network(
    image: Tensor,
    weights: Tensor,
    thresholds: Tensor,
    forced_gates: Tensor | None,
    plan: Tensor,
    gates: int,
    logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs ``plan`` for each sample; what stands between its instructions never leaves a worker's memory.

    The working memory is one copy of the plan's buffers per thread, whatever the batch.

    Args:
        image: float32 [B, C, H, W].
        weights: float32, packed by :mod:`dsn_kernels.nn`.
        thresholds: float32 [L] in [0, 1], L the gated layers of all blocks.
        forced_gates: uint8 [B, L] of 0 and 1, or None.
        plan: int64, ``Plan.words()``.
        gates: ``Plan.gates``, L.
        logits: ``Plan.logits``.

    Returns:
        logits float32 [B, logits]; gates taken uint8 [B, L]; scores float32 [B, L]; MACs executed
        int64 [B].

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape or values, or the plan does not fit; the message
            names it.
    """
    return torch.ops.dsn.network(image, weights, thresholds, forced_gates, plan, gates, logits)


@torch.library.register_fake("dsn::network")
def _(image, weights, thresholds, forced_gates, plan, gates, logits):
    batch = image.shape[0]
    return (
        image.new_empty(batch, logits),
        image.new_empty(batch, gates, dtype=torch.uint8),
        image.new_empty(batch, gates),
        image.new_empty(batch, dtype=torch.int64),
    )


@register_flop_formula(torch.ops.dsn.network, get_raw=True)
def _(*args, out_val, **kwargs) -> int:
    return 2 * int(out_val[3].sum())
