"""Networks that decide per image which layers they need, and kernels that compute only those.

>>> model = dsn_models.load("concat-bc-100.safetensors")
>>> fast = dsn_kernels.accelerate(model)
>>> coarse, fine = fast(images)
"""

import torch  # noqa: F401  (loads the libraries that _C links against)

from . import _C, nn, ops
from .accelerate import accelerate
from .forked import survive_forks

survive_forks()

__all__ = ["_C", "accelerate", "nn", "ops"]
