"""Twins: modules that hold a reference module's packed weights and call one operator in its place."""

from .blueprints import family_of
from .canonical import canonical, overrides
from .dense_block import DenseBlock
from .head import Head
from .network import NETWORKS, Network, Target
from .stage import STAGES, ResidualStage, SelectConv2d, Stage
from .transition import Transition

__all__ = [
    "NETWORKS",
    "STAGES",
    "DenseBlock",
    "Head",
    "Network",
    "ResidualStage",
    "SelectConv2d",
    "Stage",
    "Target",
    "Transition",
    "canonical",
    "family_of",
    "overrides",
]
