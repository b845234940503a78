"""A plan's instructions as modules that hold their packed weights and call one operator."""

from __future__ import annotations

from .dense_steps import DenseBlock, Head, PathHead, Stem, Transition
from .map_steps import Add, Conv2d, Gate, Linear, Load, Pool, PoolSums, Store, Subsample, Tanh
from .step import OPS, Facts, Step

STEPS: dict[str, type[Step]] = {
    "load": Load,
    "store": Store,
    "stem": Stem,
    "dense_block": DenseBlock,
    "transition": Transition,
    "head": Head,
    "path_head": PathHead,
    "conv2d": Conv2d,
    "subsample": Subsample,
    "max_pool": Pool,
    "avg_pool": Pool,
    "pool_sums": PoolSums,
    "add": Add,
    "gate": Gate,
    "linear": Linear,
    "tanh": Tanh,
}


def make(index: int, facts: Facts) -> Step:
    """The module of a plan's instruction number ``index``."""
    return STEPS[OPS[facts.plan.code[index].op]](index, facts)
