"""A network as typed nodes with their original weights, and what is known of it before any backend is."""

from . import nodes
from .analysis import Reads, Work, count_macs, find_reads, gate_columns, last_readers, pooled_maps, trace
from .graph import Graph, Region
from .nodes import *  # noqa: F403  # the list of nodes is theirs

__all__ = [
    "Graph",
    "Reads",
    "Region",
    "Work",
    "count_macs",
    "find_reads",
    "gate_columns",
    "last_readers",
    "pooled_maps",
    "trace",
]
__all__ += nodes.__all__
