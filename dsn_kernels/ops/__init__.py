"""The operators: wrapper, shape function and count of multiply-accumulates (MACs), one file each.

All are inference operators on float32 CPU tensors. Each returns what it ran: gates, scores, and the MACs its kernels
counted while they ran.
"""

from .dense_block import dense_block
from .head import head
from .network import network
from .preact_conv2d import preact_conv2d

__all__ = ["dense_block", "head", "network", "preact_conv2d"]
