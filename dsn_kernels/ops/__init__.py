"""The operators: wrapper, shape function and count of multiply-accumulates (MACs), one file each.

All are inference operators, on the CPU in float32. Gated ones return what they ran: gates, scores, and the MACs that
their kernels counted meanwhile. ``run_plan``, ``network`` for the GPU, is called through `dsn_kernels.nn.plan_runner`.
"""

from .dense_block import dense_block
from .head import head
from .network import network, timed_network
from .preact_conv2d import preact_conv2d

__all__ = ["dense_block", "head", "network", "preact_conv2d", "timed_network"]
