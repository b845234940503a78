"""Twins: modules that hold a reference module's packed weights and run its plan in its place."""

from .blueprints import family_of
from .canonical import canonical, overrides
from .network import NETWORKS, Network, Target
from .stage import STAGES, ChosenConv2d, ResidualUnits, Stage

__all__ = [
    "NETWORKS",
    "STAGES",
    "ChosenConv2d",
    "Network",
    "ResidualUnits",
    "Stage",
    "Target",
    "canonical",
    "family_of",
    "overrides",
]
