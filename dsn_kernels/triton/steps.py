"""The nodes of a graph as modules that hold their packed weights and call one operator."""

from __future__ import annotations

from collections.abc import Callable

from .. import graph
from .dense_steps import DenseBlock, Head, PathHead, Stem, Transition
from .map_steps import Add, Conv2d, Gate, Linear, Load, Pool, PoolSums, Store, Subsample, Tanh
from .step import Facts, Step

STEPS: dict[type[graph.Node], Callable[..., Step]] = {
    graph.Load: Load,
    graph.Store: Store,
    graph.Stem: Stem,
    graph.DenseBlock: DenseBlock,
    graph.Transition: Transition,
    graph.Head: Head,
    graph.PathHead: PathHead,
    graph.Conv2d: Conv2d,
    graph.Subsample: Subsample,
    graph.MaxPool: Pool,
    graph.AvgPool: Pool,
    graph.PoolSums: PoolSums,
    graph.Add: Add,
    graph.Gate: Gate,
    graph.Linear: Linear,
    graph.Tanh: Tanh,
}


def make(index: int, facts: Facts) -> Step:
    """The module of node number ``index``."""
    node = facts.graph.nodes[index]
    return STEPS[type(node)](node, index, facts)
