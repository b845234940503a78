"""Multiply-accumulates of a network: dense, executed as papers count it, and executed by the kernels; by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsn_models import UserError

from ..graph import Graph, Stem, Transition, Work, trace
from .networks import count_dense, executed_macs, image_shape, open_gates

__all__ = ["FlopCount", "LayerCount", "count_dense", "flops", "layer_counts"]


@dataclass(frozen=True)
class LayerCount:
    """MACs of one step: a layer, a convolution of a unit, a gate, a transition, a head.

    Attributes:
        name: such as ``"coarse.layer.3"`` or ``"units.7.conv2d.1"``.
        branch: name of the gates among which its gate is, or "" for a step of no branch.
        gate: index of the gate that decides on it, the first of its filters' gates; -1 if it always runs.
        dense: in the network without gates; 0 for what only the gated network has.
        ran: fraction of it that ran, float64 [B].
        executed: int64 [B].
    """

    name: str
    branch: str
    gate: int
    dense: int
    ran: Tensor
    executed: Tensor


@dataclass(frozen=True)
class FlopCount:
    """Work of one forward pass in multiply-accumulates (MACs; 2 FLOPs each) of convolutions and linear layers.

    Attributes:
        dense: MACs per sample when every layer runs in the reference's order of operations; where only parts of the
            network were replaced, what it executes with every gate open.
        skipped_only: what papers count, float64 [B]: the dense MACs without those of skipped layers, units or filters;
            gates cost nothing, and a skipped layer saves nothing in those that would have read it.
        executed: MACs each sample took, int64 [B]: gates, a gater and all else included.
        gates: per branch, the fraction of (sample, layer) pairs that ran; empty for a network without gates.
        layers: the same, step by step; empty where only parts of the network were replaced.
    """

    dense: int
    skipped_only: Tensor
    executed: Tensor
    gates: dict[str, float]
    layers: list[LayerCount] = field(default_factory=list, repr=False)

    @property
    def saved(self) -> float:
        """1 - mean(executed) / dense."""
        return 1.0 - self.executed.double().mean().item() / self.dense


def flops(model: Any, images: Tensor | None = None) -> FlopCount:
    """Dense and executed MACs of ``model``.

    An accelerated model executes what its gates let run. A reference model is counted as if it computed every layer
    and then masked, as it does in training: its executed MACs are the dense ones whatever its gates say.

    Args:
        model: made by ``dsn_kernels.accelerate``, ``dsn_models.create`` or ``dsn_models.load``.
        images: the batch to run and count, [B, C, H, W]; without it, the last batch that ``model`` saw is counted.

    Raises:
        UserError: ``images`` is not given and ``model`` has not run, or the batch was empty.
    """
    executed = None
    if images is not None:
        if len(images) == 0:
            raise UserError("the batch is empty; expected at least one image to count")
        if hasattr(model, "macs") or hasattr(model, "swapped"):
            executed = executed_macs(model, images)
        else:
            with torch.inference_mode():
                model(images)
    elif hasattr(model, "last_macs") and len(model.last_macs):
        executed = model.last_macs
    gates: dict[str, Tensor] = getattr(model, "last_gates", {})
    batch = len(images) if images is not None else len(executed) if executed is not None else 0
    if batch == 0 and gates:
        batch = len(next(iter(gates.values())))
    if batch == 0:
        raise UserError("the model has not run on any image and no images are given; expected one of both")
    ratios = {name: taken.double().mean().item() for name, taken in gates.items()}
    dense = _dense(model)
    if executed is None:
        executed = torch.full((batch,), dense, dtype=torch.int64)
    if not hasattr(model, "macs"):
        return FlopCount(dense, executed.double(), executed, ratios)
    layers = layer_counts(model, gates, batch)
    papers = [layer.ran * layer.dense for layer in layers]
    return FlopCount(dense, torch.stack(papers).sum(0), executed, ratios, layers)


def _dense(model: Any) -> int:
    if hasattr(model, "dense_macs"):
        return int(model.dense_macs)
    if not hasattr(model, "swapped"):
        return count_dense(model)
    # Its parts are no longer the reference's; with every gate open it does the dense network's work, and its gates'.
    return int(executed_macs(model, torch.zeros(1, *image_shape(model.config)), open_gates(model, 1)))


def layer_counts(fast: Any, gates: Mapping[str, Tensor], batch: int) -> list[LayerCount]:
    """The steps of an accelerated network and what each cost under ``gates``, ``{name: [B, L]}`` of 0 and 1.

    What torch runs beside the plan, such as an ImageNet stem, is the last entry, ``"rest"``. The sum of ``executed`` is
    ``fast.macs(gates)``, that of ``dense`` is ``fast.dense_macs``.
    """
    names = list(fast.layers)
    joined = torch.cat([gates[name] for name in names], 1) if names else torch.empty(batch, 0, dtype=torch.uint8)
    counts = []
    for part, module in planned_parts(fast):
        rows = joined[:, : module.graph.gates]
        layers = (count for _, count in graph_layers(part, module.graph, rows, fast.layers))
        counts += [count for count in layers if count.executed.any() or count.dense]
    rest = fast.macs(gates) - torch.stack([count.executed for count in counts]).sum(0)
    dense_rest = int(fast.dense_macs) - sum(count.dense for count in counts)
    if rest.any() or dense_rest:
        ones = torch.ones(batch, dtype=torch.float64)
        counts.append(LayerCount("rest", "", -1, dense_rest, ones, rest.expand(batch)))
    return counts


def planned_parts(fast: Any) -> list[tuple[str, Any]]:
    """The modules of an accelerated network that hold a graph, in the order in which they run: itself, or its parts."""
    return list(fast.parts.items())


def graph_layers(
    part: str, graph: Graph, gates: Tensor, layers: Mapping[str, int]
) -> Iterator[tuple[Work, LayerCount]]:
    """The steps of one graph by name, those without MACs too.

    Branches follow each other; gates are numbered in that order.
    """
    firsts, first = {}, 0
    for name, count in layers.items():
        firsts[name], first = first, first + count
    only = next(iter(layers), "")  # a network of one branch does not name it
    seen: Counter[str] = Counter()
    stems = 0
    # A gate is named by what it decides on, so that it is counted as that is.
    governed = {node.only_if: node.where for node in reversed(graph.nodes) if node.only_if >= 0}
    works = zip(trace(graph, gates), trace(graph, torch.ones(1, graph.gates, dtype=torch.uint8)), strict=True)
    for work, opened in works:
        node = graph.nodes[work.index]
        branch = node.branch or only
        dense = 0 if part == "gater" or node.where == "gate" else _dense_macs(graph, opened)
        if isinstance(node, Stem):  # each branch runs it into its own map, a framework once
            stems += 1
            dense = dense if stems == 1 else 0
        gate = work.gate - firsts[branch] if work.gate >= 0 else -1
        where = node.where or governed.get(getattr(node, "first_gate", -1)) if work.op == "gate" else node.where
        where = where or ".".join(word for word in (part, node.branch) if word)
        key = f"{where}.{work.op}" if where else work.op
        yield work, LayerCount(f"{key}.{seen[key]}", branch, gate, dense, work.ran.double(), work.macs)
        seen[key] += 1


def _dense_macs(graph: Graph, opened: Work) -> int:
    """MACs in the network without gates, of a step that all gates let run."""
    if opened.op == "gate":
        return 0
    node, macs = graph.nodes[opened.index], int(opened.macs)
    if isinstance(node, Transition):  # a framework pools after the convolution
        return macs * graph.maps[node.src].pixels // graph.maps[node.dst].pixels
    return macs
