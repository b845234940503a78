"""Runs a plan with the Triton kernels: on an NVIDIA or AMD GPU, or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .. import _C
from ..nn.plan_runner import Outputs, Resizable
from ..ops.inference import refuse_gradients
from ..ops.network import Instruction, Plan
from . import steps
from .layout import Channels
from .routing import first_samples, words_of
from .step import Facts, Run


class TritonRunner(nn.Module):
    """A plan of the CPU kernels and its packed weights, for the Triton kernels.

    Called as `dsn_kernels.nn.plan_runner.PlanRunner` is. A map is given back when its last reader is done.

    Args:
        plan, weights: of the CPU kernels.
        dtype: of weights and maps: float32, float16 or bfloat16; gates, heads, biases and constants stay float32.
    """

    def __init__(self, plan: Plan, weights: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.plan, self.dtype = plan, dtype
        self.gates, self.logits = plan.gates, plan.logits
        self.sizes = [(height, width) for _, height, width in plan.buffers]
        self._resizable = Resizable(plan)
        facts = Facts(plan, weights.detach().cpu().double(), dtype)
        self.steps = nn.ModuleList(steps.make(index, facts) for index in range(len(plan.code)))
        self.layouts: list[Channels] = facts.layouts
        self.lists = facts.lists
        self._done = _last_readers(plan)

    def at(self, height: int, width: int) -> Callable[..., Outputs]:
        """The same for images of another size, see :class:`dsn_kernels.nn.plan_runner.Resizable`."""
        buffers = self._resizable.at(height, width).plan.buffers
        return partial(self._run, [(high, wide) for _, high, wide in buffers])

    def forward(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs:
        return self._run(self.sizes, image, thresholds, forced, count)

    def _run(
        self,
        sizes: list[tuple[int, int]],
        image: Tensor,
        thresholds: Tensor,
        forced: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Outputs:
        refuse_gradients(image, thresholds)
        batch, gates, device = image.shape[0], self.gates, image.device
        run = Run(
            image=image,
            dtype=self.dtype,
            sizes=sizes,
            layouts=self.layouts,
            thresholds=thresholds,
            forced=forced,
            enabled=None if count is None else first_samples(count, batch),
            logits=torch.empty(batch, self.logits, dtype=torch.float32, device=device),
            taken=torch.zeros(batch, gates, dtype=torch.uint8, device=device),
            scores=torch.zeros(batch, gates, dtype=torch.float32, device=device),
            words=torch.zeros(gates, words_of(batch), dtype=torch.int64, device=device),
            macs=torch.zeros(batch, dtype=torch.int64, device=device),
            map=image.new_empty(batch, 0, 1, 1),
            lists=self.lists,
        )
        if len(self.lists):
            run.choose()
        for step, done in zip(self.steps, self._done, strict=True):
            step(run)
            for buffer in done:
                run.maps.pop(buffer, None)
        return Outputs(run.logits, run.map, run.taken, run.scores, run.macs)


def _last_readers(plan: Plan) -> list[list[int]]:
    """For each instruction, the buffers that no later one touches."""

    def touched(step: Instruction) -> list[int]:
        guide = step.guide if step.op == _C.OPS["transition"] else -1
        return [b for b in (step.src, step.dst, guide) if b >= 0]

    last = {buffer: i for i, step in enumerate(plan.code) for buffer in touched(step)}
    return [[b for b, i in last.items() if i == at] for at in range(len(plan.code))]
