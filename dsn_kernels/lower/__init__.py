"""A graph as each backend runs it: instructions, and weights packed from the originals."""

from .plan import Plan

__all__ = ["Plan"]
