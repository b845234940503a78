"""Networks that decide per image which layers they need, and kernels that compute only those.

>>> model = dsn_models.load("concat-bc-100.safetensors")
>>> fast = dsn_kernels.accelerate(model)
>>> coarse, fine = fast(images)
"""

from importlib.metadata import version

import torch  # noqa: F401  (loads the libraries that _C links against)

from dsn_models.errors import UserError

from . import _C, capture, graph, ops
from .accelerate import accelerate
from .forked import survive_forks
from .runtime import Accelerated, Part, Result, Target

__version__ = version("dsn-kernels")

survive_forks()

__all__ = [
    "_C",
    "Accelerated",
    "Part",
    "Result",
    "Target",
    "UserError",
    "__version__",
    "accelerate",
    "capture",
    "graph",
    "ops",
]
