"""A graph as each backend runs it: instructions, and weights packed from the originals."""

from . import cpu, cuda
from .plan import Plan, steps

__all__ = ["Plan", "cpu", "cuda", "steps"]
