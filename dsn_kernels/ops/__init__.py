"""The operator that runs a plan: wrapper, shape function and count of multiply-accumulates (MACs).

It is for inference, on the CPU in float32. It returns what it ran: gates, scores, and the MACs that the kernels counted
meanwhile.
"""

from .run_plan import plan_sizes, run_plan

__all__ = ["plan_sizes", "run_plan"]
