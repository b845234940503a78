"""The operators: wrapper, shape function and count of multiply-accumulates (MACs), one file each.

All are inference operators, on the CPU in float32. Gated ones return what they ran: gates, scores, and the MACs that
their kernels counted meanwhile. ``stage`` and its kinds are plans from a map to a map, which ``run_plan`` runs; on a
GPU it also runs whole networks.
"""

from .dense_block import dense_block
from .head import head
from .network import network, timed_network
from .preact_conv2d import preact_conv2d
from .stage import gradual_layer, residual_stage, select_conv2d, stage

__all__ = [
    "dense_block",
    "gradual_layer",
    "head",
    "network",
    "preact_conv2d",
    "residual_stage",
    "select_conv2d",
    "stage",
    "timed_network",
]
