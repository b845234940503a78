"""Runs a graph with the Triton kernels: on an NVIDIA or AMD GPU, or in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ..graph import Graph, last_readers
from ..ops import Outputs, refuse_gradients
from . import steps
from .layout import Channels
from .routing import first_samples, words_of
from .step import Facts, Run


class TritonRunner(nn.Module):
    """A graph for the Triton kernels.

    ``forward(image, thresholds, forced=None, count=None)``: image [B, C, H, W], float32 or ``dtype``; thresholds
    float32 [L]; forced uint8 [B, L] (0 skips), which a graph with masks needs, or None; count int32 [1], the samples
    that are real, or None for all. A map is given back when its last reader is done.

    Args:
        graph: the network.
        dtype: of weights and maps: float32, float16 or bfloat16; gates, heads, biases and constants stay float32.

    Raises:
        UserError: the kernels do not serve a node; the message names it.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        super().__init__()
        self.graph, self.dtype = graph.without_weights(), dtype
        self.gates, self.logits, self.sizes = graph.gates, graph.logits, _sizes(graph)
        facts = Facts(graph, dtype)
        self.steps = nn.ModuleList(steps.make(index, facts) for index in range(len(graph.nodes)))
        self.layouts: list[Channels] = facts.layouts
        self.lists = facts.lists
        self._done = last_readers(graph)

    def at(self, height: int, width: int) -> Callable[..., Outputs]:
        """The same for images of another size, as :meth:`dsn_kernels.graph.Graph.resized` takes them."""
        return partial(self._run, _sizes(self.graph.resized(height, width)))

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
            logits=torch.zeros(batch, self.logits, dtype=torch.float32, device=device),
            taken=torch.zeros(batch, gates, dtype=torch.uint8, device=device),
            scores=torch.zeros(batch, gates, dtype=torch.float32, device=device),
            words=torch.zeros(gates, words_of(batch), dtype=torch.int64, device=device),
            macs=torch.zeros(batch, dtype=torch.int64, device=device),
            map=image.new_empty(batch, 0, 1, 1),
            lists=self.lists,
        )
        if self.lists.forced:
            assert forced is not None
            run.taken.copy_(forced != 0)
            run.choose()
        for step, done in zip(self.steps, self._done, strict=True):
            step(run)
            if step.chooses:
                run.choose()
            for map in done:
                run.maps.pop(map, None)
        return Outputs(run.logits, run.map, run.taken, run.scores, run.macs)


def _sizes(graph: Graph) -> list[tuple[int, int]]:
    return [(map.height, map.width) for map in graph.maps]
