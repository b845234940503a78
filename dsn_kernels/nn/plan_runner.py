"""Runs a plan: on the CPU, on a GPU, or on the host runner that plays one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dsn_models.errors import UserError

from .. import ops
from ..ops.inference import refuse_gradients
from ..ops.network import Instruction, Plan
from .cuda_packing import ELEMENTS, pack_for_cuda


class Outputs(NamedTuple):
    """What a plan leaves: logits float32 [B, logits], the stored map or [B, 0, 1, 1], gates uint8 [B, L], scores
    float32 [B, L] and MACs int64 [B]."""

    logits: Tensor
    map: Tensor
    gates: Tensor
    scores: Tensor
    macs: Tensor


class Sized(NamedTuple):
    """A plan for maps of one size, its words and what the operator is told beside them."""

    plan: Plan
    words: Tensor  # on the CPU: a plan is read there
    sizes: dict[str, Any]


def _sized(plan: Plan) -> Sized:
    return Sized(plan, plan.words(), ops.plan_sizes(plan))


class Resizable:
    """A plan, and what it becomes for maps of another size; only for one that loads a map or whose stem takes any.

    Args:
        plan: as it is made.
        code: the instructions that run, where they are others.
    """

    def __init__(self, plan: Plan, code: list[Instruction] | None = None) -> None:
        self.plan, self.code = plan, plan.code if code is None else code
        self.own = _sized(Plan(plan.buffers, self.code))
        self._kept: dict[tuple[int, int], Sized] = {}

    def at(self, height: int, width: int) -> Sized:
        """Kept once made, but not while a program is compiled, where sizes may be symbols.

        Raises:
            UserError: the map is so small that nothing is left of it on the way.
        """
        if not torch.compiler.is_compiling() and (height, width) in self._kept:
            return self._kept[height, width]
        buffers = self.plan.resized(height, width).buffers
        if any(min(size) < 1 for _, *size in buffers):
            raise UserError(f"maps are {height} x {width}; expected larger ones, of which the halvings leave a pixel")
        made = _sized(Plan(buffers, self.code))
        if not torch.compiler.is_compiling():
            self._kept[height, width] = made
        return made


class CpuRunner(nn.Module):
    """A plan and its packed weights, for the CPU kernels; called as :class:`PlanRunner` is, without a count."""

    weights: Tensor

    def __init__(self, plan: Plan, weights: Tensor) -> None:
        super().__init__()
        self.plan, self._resizable = plan, Resizable(plan)
        self.register_buffer("weights", weights)

    def at(self, height: int, width: int) -> Callable[..., Outputs]:
        """The same for images of another size, see :class:`Resizable`."""
        return partial(self._run, self._resizable.at(height, width))

    def forward(self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None) -> Outputs:
        return self._run(self._resizable.own, image, thresholds, forced)

    def _run(self, sized: Sized, image: Tensor, thresholds: Tensor, forced: Tensor | None = None) -> Outputs:
        *out, _ = ops.run_plan(image, self.weights, thresholds, forced, sized.words, **sized.sizes)
        return Outputs(*out)


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
        self._resizable = Resizable(plan, self.plan.code)
        self.register_buffer("weights", packed)

    def at(self, height: int, width: int) -> Callable[..., Outputs]:
        """The same for images of another size, see :class:`Resizable`."""
        return partial(self._run, self._resizable.at(height, width))

    def forward(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs:
        return self._run(self._resizable.own, image, thresholds, forced, count)

    def _run(
        self,
        sized: Sized,
        image: Tensor,
        thresholds: Tensor,
        forced: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Outputs:
        refuse_gradients(image, self.weights, thresholds)
        if self.backend == "simt":
            return self._run_on_host(sized, image, thresholds, forced, count)
        if not (self.weights.is_cuda and self.weights.device == image.device):
            raise UserError(f"images are on {image.device}, the weights on {self.weights.device}; expected one GPU")
        options: dict[str, Any] = {"count": count, "element": ELEMENTS[self.dtype]}
        *out, _ = ops.run_plan(image, self.weights, thresholds, forced, sized.words, **sized.sizes, **options)
        return Outputs(*out)

    def schedule(self, batch: int, plan: Plan | None = None) -> Any:
        """The host runner's launches for a batch."""
        plan = plan or self.plan
        code = [tuple(vars(step).values()) for step in plan.code]
        shape = (plan.gates, plan.logits, ELEMENTS[self.dtype], batch)
        device = (MULTIPROCESSORS, SHARED_BYTES, self.clusters, L2_RATE)
        return load_simt().Network(plan.buffers, code, *shape, *device)

    def _run_on_host(
        self, sized: Sized, image: Tensor, thresholds: Tensor, forced: Tensor | None, count: Tensor | None
    ) -> Outputs:
        simt, batch, plan = load_simt(), image.shape[0], sized.plan
        out = Outputs(
            _poisoned(batch, plan.logits),
            _poisoned(batch, *sized.sizes["map"], dtype=image.dtype),
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
    """What the runners of all backends have in common; that of the CPU takes no count."""

    def __call__(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs: ...

    def at(self, height: int, width: int) -> Callable[..., Outputs]: ...


def make_runner(plan: Plan, weights: Tensor, dtype: torch.dtype, backend: str) -> Any:
    """The :class:`Runner`, a module, of a plan of the CPU kernels, for one of the backends of :class:`Target`."""
    if backend == "cpu":
        return CpuRunner(plan, weights)
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
