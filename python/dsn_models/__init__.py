"""Reference models, data and training in plain PyTorch; imports no kernel."""

from .checkpoints import load, save
from .errors import UserError
from .torchvision_weights import load_torchvision_densenet121
from .zoo import create, names

__all__ = ["UserError", "create", "load", "load_torchvision_densenet121", "names", "save"]
