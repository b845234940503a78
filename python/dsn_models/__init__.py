"""Reference models, data and training in plain PyTorch; imports no kernel."""

from . import functional
from .checkpoints import load, read_metadata, save, with_classes
from .errors import UserError
from .gating import gate, gate_filters
from .torchvision_weights import load_torchvision_densenet121
from .world import Preprocess
from .zoo import create, names

__all__ = [
    "Preprocess",
    "UserError",
    "create",
    "functional",
    "gate",
    "gate_filters",
    "load",
    "load_torchvision_densenet121",
    "names",
    "read_metadata",
    "save",
    "with_classes",
]
