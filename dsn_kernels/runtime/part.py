"""A part of a network, accelerated: from a map to a map, or to a head's logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsn_models.errors import UserError

from ..capture import capture_part, decides
from .cuda_graphs import check_forced, check_threshold
from .fixed import Fixed
from .runner import make_runner
from .target import CPU, Target

_THRESHOLD = 0.5  # unless a call gives another


class Part(Fixed):
    """A part of a network that runs as a plan: same call and outputs as the reference's in ``eval()``.

    ``forward(x, threshold=0.5, forced=None)``: x float32 [B, C, H, W], on a GPU also of the target's dtype, to y, a map
    of x's dtype, or logits float32 [B, classes] of a head. Where the reference's layers or units are gated, to y, the
    gates taken uint8 [B, L] and their scores float32 [B, L]; forced uint8 [B, L] of 0 and 1 is in place of the
    decisions. What a call did is in ``last_gates``, ``last_scores`` and ``last_macs``.

    Args:
        part: of one of :func:`dsn_kernels.capture.parts`, or of a subclass, or a
            :class:`dsn_kernels.capture.ResidualUnits` or :class:`dsn_kernels.capture.ChosenConv2d`.
        target: what it runs on; on the CPU in float32.

    Raises:
        UserError: the part computes something else than its class, or is not served. From a call: x is no batch of
            maps or too small, the threshold is not in [0, 1], or forced gates hold anything but 0 and 1.
        RuntimeError: an argument of a call has the wrong device, dtype or shape; the message names it.

    >>> import torch, dsn_models, dsn_kernels
    >>> transition = dsn_models.create("dsn-navon", image_size=16).coarse.transitions[0]
    >>> dsn_kernels.Part(transition).last_macs
    tensor([], dtype=torch.int64)
    """

    limits: Tensor

    def __init__(self, part: Any, target: Target = CPU) -> None:
        super().__init__()
        if target.backend == "cpu" and target.dtype != torch.float32:
            raise UserError(f"dtype is {target.dtype}; parts of a network are served in torch.float32 on the CPU")
        graph = capture_part(part)
        self.target = target
        self.stores, self.gated = graph.stored.channels > 0, decides(graph)
        self.register_buffer("limits", torch.full((graph.gates,), _THRESHOLD, dtype=torch.float32), persistent=False)
        self.runner = make_runner(graph, target.dtype, target.backend, any_size=True)
        # Gates, scores and MACs of the last call.
        none = torch.empty(0, graph.gates, dtype=torch.float32)
        self._last = (none.byte(), none, torch.empty(0, dtype=torch.int64))
        self.eval()

    def forward(
        self, x: Tensor, threshold: float = _THRESHOLD, forced: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if x.dim() != 4:
            raise UserError(f"x has shape {list(x.shape)}; expected a batch of maps, [B, C, H, W]")
        if forced is not None:
            check_forced(forced)
        limits = self.limits
        if threshold != _THRESHOLD:
            limits = torch.full_like(limits, check_threshold(threshold))
        out = self.runner.at(*x.shape[2:])(x, limits, forced)
        if not torch.compiler.is_exporting():  # an exported program returns the outputs alone
            self._last = (out.gates, out.scores, out.macs)
        y = out.map if self.stores else out.logits
        return (y, out.gates, out.scores) if self.gated else y

    @property
    def last_gates(self) -> Tensor:
        """What each gate did in the last call, uint8 [B, L]: 1 = open."""
        return self._last[0]

    @property
    def last_scores(self) -> Tensor:
        """The gates' scores in the last call, float32 [B, L]."""
        return self._last[1]

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates of the last call, counted by the kernels while they ran, int64 [B]."""
        return self._last[2]
