"""Runs a plan with the GPU kernels: on a GPU, or on the host runner that plays one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dsn_models.errors import UserError

from ..ops import run_plan as ops
from ..ops.inference import refuse_gradients
from ..ops.network import Plan
from ..outputs import Outputs
from .cuda_packing import ELEMENTS, pack_for_cuda


class PlanRunner(nn.Module):
    """A plan of the CPU kernels and its packed weights, for the GPU kernels.

    ``forward(image, thresholds, forced=None, count=None)``: image [B, C, H, W], float32 or ``dtype``; thresholds
    float32 [L]; forced uint8 [B, L] (0 skips) or None; count int32 [1], the samples that are real, or None for all.

    Args:
        plan, weights: of the CPU kernels.
        dtype: of weights and activations: float32, float16 or bfloat16.
        backend: ``"cuda"`` or ``"simt"``, the host runner of csrc/simt.
        clusters: whether the device that the host runner plays has clusters of thread blocks, as from sm_90 on.
    """

    weights: Tensor

    def __init__(self, plan: Plan, weights: Tensor, dtype: torch.dtype, backend: str, clusters: bool = True) -> None:
        super().__init__()
        self.clusters = clusters
        self.plan, packed = pack_for_cuda(plan, weights, dtype)
        self.dtype, self.backend = dtype, backend
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
        refuse_gradients(image, self.weights, thresholds)
        if self.backend == "simt":
            return self._run_on_host(plan, image, thresholds, forced, count)
        if not (self.weights.is_cuda and self.weights.device == image.device):
            raise UserError(f"images are on {image.device}, the weights on {self.weights.device}; expected one GPU")
        return Outputs(*ops.run_plan(image, self.weights, thresholds, forced, count, plan, words, ELEMENTS[self.dtype]))

    def schedule(self, batch: int, plan: Plan | None = None) -> Any:
        """The host runner's launches for a batch."""
        plan = plan or self.plan
        code = [tuple(vars(step).values()) for step in plan.code]
        shape = (plan.gates, plan.logits, ELEMENTS[self.dtype], batch)
        device = (MULTIPROCESSORS, SHARED_BYTES, self.clusters, L2_RATE)
        return load_simt().Network(plan.buffers, code, *shape, *device)

    def _run_on_host(
        self, plan: Plan, image: Tensor, thresholds: Tensor, forced: Tensor | None, count: Tensor | None
    ) -> Outputs:
        simt, batch = load_simt(), image.shape[0]
        out = Outputs(
            _poisoned(batch, plan.logits),
            _poisoned(batch, *ops.stored_map(plan), dtype=image.dtype),
            _poisoned(batch, plan.gates, dtype=torch.uint8),
            _poisoned(batch, plan.gates),
            torch.zeros(batch, dtype=torch.int64),
        )
        if batch == 0:
            return out
        network = self.schedule(batch, plan)
        workspace = _poisoned(network.workspace_bytes, dtype=torch.uint8)
        network.run(
            simt.input(image.contiguous(), "image"),
            image.dtype == torch.float32,
            simt.input(self.weights, "weights"),
            simt.input(thresholds, "thresholds"),
            None if forced is None else simt.input(forced.contiguous(), "forced_gates"),
            None if count is None else simt.input(count, "count"),
            simt.output(out.logits, "logits"),
            simt.output(out.gates, "gates"),
            simt.output(out.scores, "scores"),
            simt.output(out.macs, "macs"),
            simt.output(out.map, "map"),
            simt.output(workspace, "workspace"),
        )
        return out


class Runner(Protocol):
    """What :class:`PlanRunner` and `dsn_kernels.triton.runner.TritonRunner` have in common."""

    def __call__(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs: ...

    def at(self, height: int, width: int) -> Callable[..., Outputs]: ...


def make_runner(plan: Plan, weights: Tensor, dtype: torch.dtype, backend: str) -> Any:
    """The :class:`Runner`, a module, of a plan of the CPU kernels for ``backend``: "cuda", "simt" or "triton"."""
    if backend == "triton":
        from ..triton.runner import TritonRunner

        return TritonRunner(plan, weights, dtype)
    return PlanRunner(plan, weights, dtype, backend)


# Of the device that the host runner plays: an H200.
MULTIPROCESSORS = 132
SHARED_BYTES = 227 * 1024
L2_RATE = 5.5e12  # bytes/s


def _poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every byte 0xff, which is NaN in every float type: what a kernel leaves out shows."""
    out = torch.empty(*shape, dtype=dtype)
    if out.numel():
        out.view(torch.uint8).fill_(0xFF)
    return out


@lru_cache(maxsize=1)
def load_simt() -> Any:
    """The module of csrc/simt, built on first use.

    Raises:
        UserError: it cannot be built here.
    """
    script = Path(__file__).resolve().parents[2] / "csrc" / "simt" / "build.py"
    if not script.exists():
        raise UserError("backend 'simt' plays the GPU kernels on the CPU for tests; it needs the source tree")
    builder = _import("dsn_simt_build", script)
    try:
        return _import("dsn_simt", builder.build())
    except builder.BuildError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"backend 'simt' cannot be built: {reason}") from error


def _import(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
