"""Runs a graph on a backend."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dsn_models.errors import UserError

from .. import _C, lower, ops
from ..costs import NO_COSTS, costs
from ..graph import Graph
from ..lower import Plan
from ..ops import Outputs


class Runner(Protocol):
    """What the runners of all backends have in common, all of them modules.

    Called with image [B, C, H, W], float32 or of the runner's dtype; thresholds float32 [L]; forced uint8 [B, L] (0
    skips) or None; on a GPU count int32 [1], the samples that are real, or None for all.
    """

    graph: Graph

    def __call__(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs: ...

    def at(self, height: int, width: int) -> Callable[..., Outputs]:
        """The same for maps of another size.

        Raises:
            UserError: the map is so small that nothing is left of it on the way.
        """
        ...


class Sized(NamedTuple):
    """A plan for maps of one size: its graph, its words, and what the operator is told beside them."""

    graph: Graph
    words: Tensor  # on the CPU: a plan is read there
    sizes: dict[str, Any]

    @classmethod
    def of(cls, plan: Plan, graph: Graph) -> Sized:
        return cls(graph, plan.words(graph), {"gates": graph.gates, "logits": graph.logits, "map": list(graph.stored)})


class PlanRunner(nn.Module):
    """The :class:`Runner` of a plan on the CPU or on a GPU, by where its weights are.

    Its state carries the format of plans and a checksum of its own, so that a state of another build, network or
    instruction set is refused.
    """

    weights: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.register_buffer("weights", plan.weights)
        self.gpu = plan.weights.dtype == torch.uint8  # packed for one
        self.plan = plan.without_weights()
        self.graph = self.plan.graph
        self.own = Sized.of(self.plan, self.graph)
        self._kept: dict[tuple[int, int], Sized] = {}

    def at(self, height: int, width: int) -> Callable[..., Outputs]:
        """Kept once made, but not while a program is compiled, where sizes may be symbols."""
        if torch.compiler.is_compiling():
            return partial(self._run, self.sized(height, width))
        if (height, width) not in self._kept:
            self._kept[height, width] = self.sized(height, width)
        return partial(self._run, self._kept[height, width])

    def sized(self, height: int, width: int) -> Sized:
        """The plan for maps of another size."""
        return Sized.of(self.plan, resized(self.graph, height, width))

    def forward(
        self, image: Tensor, thresholds: Tensor, forced: Tensor | None = None, count: Tensor | None = None
    ) -> Outputs:
        return self._run(self.own, image, thresholds, forced, count)

    def _run(
        self,
        sized: Sized,
        image: Tensor,
        thresholds: Tensor,
        forced: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Outputs:
        weights = self.weights
        fits = weights.is_cuda and weights.device == image.device if self.gpu else weights.is_cpu and image.is_cpu
        if not fits:
            expected = "one GPU" if self.gpu else "the CPU"
            raise UserError(f"images are on {image.device}, the weights on {weights.device}; expected {expected}")
        options: dict[str, Any] = {"count": count, "element": self.plan.element} if self.gpu else {}
        out = ops.run_plan(image, weights, thresholds, forced, sized.words, **sized.sizes, **options)
        return Outputs(*out[:5])

    def get_extra_state(self) -> dict[str, int]:
        # Costs are the machine's and not the network's: a state goes from one machine to another of the same layouts.
        words = replace(self.plan, costs=NO_COSTS).words()
        return {"format": _C.PLAN_FORMAT, "plan": zlib.crc32(words.numpy().tobytes())}

    def set_extra_state(self, state: dict[str, int]) -> None:
        _check_format(state["format"])
        if state != self.get_extra_state():  # weights of as many bytes may lie in another order
            raise UserError("the state is of another network, or packed for another machine: accelerate the model anew")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes a pickle's state, which may come from another build."""
        _check_format(int(state["own"].words[0]))
        super().__setstate__(state)


def _check_format(given: int) -> None:
    if given != _C.PLAN_FORMAT:
        raise UserError(
            f"the state is of plans of format {given}; this build reads {_C.PLAN_FORMAT}: accelerate the model anew"
        )


def resized(graph: Graph, height: int, width: int) -> Graph:
    """``graph`` for maps of another size.

    Raises:
        UserError: the map is so small that nothing is left of it on the way.
    """
    made = graph.resized(height, width)
    if any(min(map) < 1 for map in made.maps):
        raise UserError(f"maps are {height} x {width}; expected larger ones, of which the halvings leave a pixel")
    return made


def _on_cpu(graph: Graph, dtype: torch.dtype, any_size: bool) -> nn.Module:
    return PlanRunner(lower.cpu.lower(graph, dtype == torch.bfloat16, any_size, costs()))


def _on_cuda(graph: Graph, dtype: torch.dtype, any_size: bool) -> nn.Module:
    return PlanRunner(lower.cuda.lower(graph, dtype))


def _on_triton(graph: Graph, dtype: torch.dtype, any_size: bool) -> nn.Module:
    from ..triton.runner import TritonRunner  # here, since Triton need not be installed

    return TritonRunner(graph, dtype)


# From a graph, the dtype of weights and activations, and whether maps of any size will enter, to the runner of each
# backend. Tests add one that plays the CUDA kernels on the host.
RUNNERS: dict[str, Callable[[Graph, torch.dtype, bool], nn.Module]] = {
    "cpu": _on_cpu,
    "cuda": _on_cuda,
    "triton": _on_triton,
}


def make_runner(graph: Graph, dtype: torch.dtype, backend: str, any_size: bool = False) -> Any:
    """The :class:`Runner` of a graph on one of the backends of :data:`RUNNERS`."""
    return RUNNERS[backend](graph, dtype, any_size)
