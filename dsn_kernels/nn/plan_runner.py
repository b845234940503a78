"""Runs a plan on a GPU, with the CUDA kernels or those of another backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dsn_models.errors import UserError

from ..ops.network import Plan
from ..ops.run_plan import Outputs, run_plan
from .cuda_packing import ELEMENTS, pack_for_cuda


class PlanRunner(nn.Module):
    """A plan of the CPU kernels and its packed weights, for the GPU kernels.

    ``forward(image, thresholds, forced=None, count=None)``: image [B, C, H, W], float32 or ``dtype``; thresholds
    float32 [L]; forced uint8 [B, L] (0 skips) or None; count int32 [1], the samples that are real, or None for all.

    Args:
        plan, weights: of the CPU kernels.
        dtype: of weights and activations: float32, float16 or bfloat16.
    """

    weights: Tensor

    def __init__(self, plan: Plan, weights: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.plan, packed = pack_for_cuda(plan, weights, dtype)
        self.dtype = dtype
        self.words = self.plan.words()  # stays on the CPU: the schedule is made there
        self.register_buffer("weights", packed)
        self._resized: dict[tuple[int, int], tuple[Plan, Tensor]] = {}

    def at(self, height: int, width: int) -> Callable[..., Outputs]:
        """The same for images of another size; only for a plan that begins with a load and halves the size, if it does,
        from one buffer to the next."""
        key = height, width
        if key not in self._resized:
            buffers = [(c, height >> i, width >> i) for i, (c, _, _) in enumerate(self.plan.buffers)]
            plan = Plan(buffers, self.plan.code)
            self._resized[key] = plan, plan.words()
        plan, words = self._resized[key]
        return partial(self._run, plan, words)

    def forward(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs:
        return self._run(self.plan, self.words, image, thresholds, forced, count)

    def _run(
        self,
        plan: Plan,
        words: Tensor,
        image: Tensor,
        thresholds: Tensor,
        forced: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Outputs:
        if not (self.weights.is_cuda and self.weights.device == image.device):
            raise UserError(f"images are on {image.device}, the weights on {self.weights.device}; expected one GPU")
        return run_plan(image, self.weights, thresholds, forced, count, plan, words, ELEMENTS[self.dtype])


class Runner(Protocol):
    """What :class:`PlanRunner` and `dsn_kernels.triton.runner.TritonRunner` have in common."""

    def __call__(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs: ...

    def at(self, height: int, width: int) -> Callable[..., Outputs]: ...


def _triton_runner(plan: Plan, weights: Tensor, dtype: torch.dtype) -> nn.Module:
    from ..triton.runner import TritonRunner  # here, since Triton need not be installed

    return TritonRunner(plan, weights, dtype)


# From a plan of the CPU kernels, its weights and a dtype to the :class:`Runner` of a backend. Tests add one that plays
# the CUDA kernels on the host: csrc/simt/host_runner.py.
RUNNERS: dict[str, Callable[[Plan, Tensor, torch.dtype], nn.Module]] = {"cuda": PlanRunner, "triton": _triton_runner}


def make_runner(plan: Plan, weights: Tensor, dtype: torch.dtype, backend: str) -> Any:
    """The :class:`Runner`, a module, of a plan of the CPU kernels for a backend of :data:`RUNNERS`."""
    return RUNNERS[backend](plan, weights, dtype)
