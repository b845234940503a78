"""Plays the CUDA kernels of a plan on the host: who imports this has ``accelerate(..., backend="simt")``."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dsn_kernels.nn.cuda_packing import ELEMENTS
from dsn_kernels.nn.plan_runner import RUNNERS, PlanRunner
from dsn_kernels.ops.inference import refuse_gradients
from dsn_kernels.ops.network import Plan
from dsn_kernels.ops.run_plan import Outputs, stored_map

from .build import build, module_path

# Of the device that is played: an H200.
MULTIPROCESSORS = 132
SHARED_BYTES = 227 * 1024
L2_RATE = 5.5e12  # bytes/s


@lru_cache(maxsize=1)
def load_simt(build_first: bool = True) -> Any:
    """The module `dsn_simt`, built on first use; without ``build_first`` as another process has built it.

    Raises:
        BuildError: it cannot be built here.
    """
    path = build() if build_first else module_path()
    spec = importlib.util.spec_from_file_location("dsn_simt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def schedule(plan: Plan, dtype: torch.dtype, batch: int, clusters: bool = True) -> Any:
    """The launches of a plan of the GPU kernels for a batch, on a device with clusters of thread blocks or without."""
    code = [tuple(vars(step).values()) for step in plan.code]
    shape = (plan.gates, plan.logits, ELEMENTS[dtype], batch)
    return load_simt().Network(plan.buffers, code, *shape, MULTIPROCESSORS, SHARED_BYTES, clusters, L2_RATE)


class HostRunner(PlanRunner):
    """`PlanRunner` on the host.

    Args:
        plan, weights, dtype: as of a `PlanRunner`.
        clusters: whether the device that is played has clusters of thread blocks, as from sm_90 on.
    """

    def __init__(self, plan: Plan, weights: Tensor, dtype: torch.dtype, clusters: bool = True) -> None:
        super().__init__(plan, weights, dtype)
        self.clusters = clusters

    def schedule(self, batch: int, plan: Plan | None = None) -> Any:
        """The launches for a batch."""
        return schedule(plan or self.plan, self.dtype, batch, self.clusters)

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
        simt, batch = load_simt(), image.shape[0]
        out = Outputs(
            _poisoned(batch, plan.logits),
            _poisoned(batch, *stored_map(plan), dtype=image.dtype),
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


def _poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every byte 0xff, which is NaN in every float type: what a kernel leaves out shows."""
    out = torch.empty(*shape, dtype=dtype)
    if out.numel():
        out.view(torch.uint8).fill_(0xFF)
    return out


RUNNERS["simt"] = HostRunner
