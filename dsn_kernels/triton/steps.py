"""The nodes of a graph as modules that hold their packed weights and call one operator."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from . import __path__ as _folder
from .step import STEPS, Facts, Step

__all__ = ["STEPS", "make"]

for _module in pkgutil.iter_modules(_folder):  # a step says which nodes it serves, wherever it stands
    import_module(f"{__package__}.{_module.name}")


def make(index: int, facts: Facts) -> Step:
    """The module of node number ``index``."""
    node = facts.graph.nodes[index]
    return STEPS[type(node)](node, index, facts)
