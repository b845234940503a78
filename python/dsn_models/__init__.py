"""Reference models, data and training in plain PyTorch; imports no kernel."""

from .checkpoints import load, save
from .errors import UserError
from .zoo import create, names

__all__ = ["UserError", "create", "load", "names", "save"]
