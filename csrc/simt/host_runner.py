"""Plays the CUDA kernels of a plan on the host: who imports this has ``accelerate(..., backend="simt")``."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dsn_kernels import _C
from dsn_kernels.graph import Graph
from dsn_kernels.lower import Plan
from dsn_kernels.lower.cuda import lower
from dsn_kernels.ops import Outputs, refuse_gradients
from dsn_kernels.runtime.runner import RUNNERS, PlanRunner, Sized

from .build import build, module_path

# Of the device that is played.
MULTIPROCESSORS: int = _C.cuda.MACHINE["multiprocessors"]
SHARED_BYTES: int = _C.cuda.MACHINE["shared_bytes"]
L2_RATE: float = _C.cuda.MACHINE["l2_rate"]


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


def schedule(plan: Plan, batch: int, graph: Graph | None = None, clusters: bool = True) -> Any:
    """The launches of a plan of the GPU kernels for a batch, on a device with clusters of thread blocks or without.

    ``graph``: that of the plan, for maps of another size.
    """
    words = plan.words(graph).tolist()
    return load_simt().Network(words, plan.element, batch, MULTIPROCESSORS, SHARED_BYTES, clusters, L2_RATE)


class HostRunner(PlanRunner):
    """`PlanRunner` on the host.

    Args:
        plan: of :func:`dsn_kernels.lower.cuda.lower`.
        clusters: whether the device that is played has clusters of thread blocks, as from sm_90 on.
    """

    def __init__(self, plan: Plan, clusters: bool = True) -> None:
        super().__init__(plan)
        self.clusters = clusters

    def schedule(self, batch: int, graph: Graph | None = None) -> Any:
        """The launches for a batch."""
        return schedule(self.plan, batch, graph, self.clusters)

    def _run(
        self,
        sized: Sized,
        image: Tensor,
        thresholds: Tensor,
        forced: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Outputs:
        refuse_gradients(image, self.weights, thresholds)
        simt, batch, graph = load_simt(), image.shape[0], sized.graph
        out = Outputs(
            _poisoned(batch, graph.logits),
            _poisoned(batch, *graph.stored, dtype=image.dtype),
            _poisoned(batch, graph.gates, dtype=torch.uint8),
            _poisoned(batch, graph.gates),
            torch.zeros(batch, dtype=torch.int64),
        )
        if batch == 0:
            return out
        network = self.schedule(batch, graph)
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


RUNNERS["simt"] = lambda graph, dtype, any_size: HostRunner(lower(graph, dtype))
