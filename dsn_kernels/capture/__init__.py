"""From modules of `dsn_models` to graphs; what a module computes is told by what is in it, not by its class alone."""

from . import dense, gaternet, gradual, inception, lenet, residual, shake  # noqa: F401  (each tells its families)
from .canonical import canonical, overrides
from .emit import Emitted
from .exported import capture_model
from .network import Captured, capture
from .parts import ChosenConv2d, ResidualUnits, capture_part, decides
from .registry import FAMILIES, Chosen, Family, family_of, networks, parts

__all__ = [
    "FAMILIES",
    "Captured",
    "Chosen",
    "ChosenConv2d",
    "Emitted",
    "Family",
    "ResidualUnits",
    "canonical",
    "capture",
    "capture_model",
    "capture_part",
    "decides",
    "family_of",
    "networks",
    "overrides",
    "parts",
]
