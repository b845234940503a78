"""Twins: modules that hold a reference module's packed weights and call one operator in its place."""

from .dense_block import DenseBlock
from .dual_skipping import DualSkippingNetwork
from .head import Head
from .planned import GaterNet, GraduallyUpdatedNetwork, ResNet, SkipNet
from .transition import Transition

__all__ = [
    "DenseBlock",
    "DualSkippingNetwork",
    "GaterNet",
    "GraduallyUpdatedNetwork",
    "Head",
    "ResNet",
    "SkipNet",
    "Transition",
]
