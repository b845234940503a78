"""Names for what is measured, where a profiler of GPUs looks for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def named_range(name: str) -> AbstractContextManager[object]:
    """An NVTX range called ``name``, which Nsight Systems shows; nothing where there is no CUDA device."""
    return torch.cuda.nvtx.range(name) if torch.cuda.is_available() else nullcontext()
