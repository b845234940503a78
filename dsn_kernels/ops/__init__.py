"""The operator that runs a plan: wrapper, shape function and count of multiply-accumulates (MACs).

It is for inference, on the CPU in float32. It returns what it ran: gates, scores, and the MACs that the kernels counted
meanwhile.
"""

from .inference import refuse_gradients
from .run_plan import Outputs, run_plan

__all__ = ["Outputs", "refuse_gradients", "run_plan"]
