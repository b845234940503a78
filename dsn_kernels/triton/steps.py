"""A plan's instructions as modules that hold their packed weights and call one operator."""

from __future__ import annotations

from dsn_models.errors import UserError

from ..ops.network import Instruction
from .dense_steps import DenseBlock, Head, Stem, Transition
from .map_steps import Add, Conv2d, Gate, Linear, Load, Pool, PoolSums, Store, Subsample
from .step import OPS, Facts, Step

_STEPS: dict[str, type[Step]] = {
    "load": Load,
    "store": Store,
    "stem": Stem,
    "dense_block": DenseBlock,
    "transition": Transition,
    "head": Head,
    "conv2d": Conv2d,
    "subsample": Subsample,
    "max_pool": Pool,
    "avg_pool": Pool,
    "pool_sums": PoolSums,
    "add": Add,
    "gate": Gate,
    "linear": Linear,
}


def make(step: Instruction, facts: Facts) -> Step:
    """The module of an instruction.

    Raises:
        UserError: it is of a network that only the CPU serves.
    """
    general = OPS[step.op] == "conv2d" and step.columns > 0
    if OPS[step.op] not in _STEPS or general or step.pad_rows or step.pad_columns:
        raise UserError(f"the Triton kernels do not serve this {OPS[step.op]}; expected a network that a GPU serves")
    return _STEPS[OPS[step.op]](step, facts)
