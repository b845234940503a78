"""Networks that decide per image which layers they need, and kernels that compute only those.

>>> model = dsn_models.load("concat-bc-100.safetensors")
>>> fast = dsn_kernels.accelerate(model)
>>> coarse, fine = fast(images)
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  (loads the libraries that _C links against)

from dsn_models.errors import UserError

from . import _C, capture, graph, ops
from .accelerate import accelerate
from .forked import survive_forks
from .runtime import Accelerated, CapturedModel, Part, Result, Target

if TYPE_CHECKING:
    from .report.timeline_views import ShownTimeline, timeline

__version__ = version("dsn-kernels")

survive_forks()


def __getattr__(name: str) -> Any:
    # When first asked for, since what measures and shows takes its time to import.
    if name in ("ShownTimeline", "timeline"):
        from .report import timeline_views

        return getattr(timeline_views, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "_C",
    "Accelerated",
    "CapturedModel",
    "Part",
    "Result",
    "ShownTimeline",
    "Target",
    "UserError",
    "__version__",
    "accelerate",
    "capture",
    "graph",
    "ops",
    "timeline",
]
