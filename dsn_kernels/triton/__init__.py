"""A graph in Triton: for GPUs without nvcc, for AMD, and for tests in Triton's interpreter.

Triton is imported when a kernel is first needed; :func:`resolve_device` says why it cannot be.
"""

from __future__ import annotations

import importlib.metadata
import os

import torch

from dsn_models.errors import UserError

_OLDEST = (3, 6)
_SWITCH = ("", "0", "false", "off", "1", "true", "on")


def version() -> str | None:
    """The version of the Triton that is installed."""
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):  # as PyTorch's builds call it
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def resolve_device(device: torch.device | None, dtype: torch.dtype) -> torch.device:
    """Where the kernels run: ``device``, or the GPU if there is one, or the CPU in Triton's interpreter.

    Raises:
        UserError: Triton is missing or too old, there is no device, the interpreter is wrong for ``dtype``, or
            ``TRITON_INTERPRET`` is no switch.
    """
    installed, oldest = version(), ".".join(map(str, _OLDEST))
    if installed is None:
        raise UserError(f"backend 'triton' needs the package triton, {oldest} or later: pip install triton")
    if tuple(int(part) for part in installed.split("+")[0].split(".")[:2]) < _OLDEST:
        raise UserError(f"backend 'triton' needs triton {oldest} or later; {installed} is installed")
    if (given := os.environ.get("TRITON_INTERPRET", "0")).lower() not in _SWITCH:
        raise UserError(f"TRITON_INTERPRET is {given!r}; expected 1 or 0")  # Triton would take it for 0
    from .support import INTERPRETED

    chosen = device or torch.device("cpu" if INTERPRETED else "cuda")
    if INTERPRETED:
        if dtype == torch.bfloat16:
            raise UserError(
                "dtype is torch.bfloat16, which Triton's interpreter gets wrong; expected float32 or float16"
            )
        return chosen
    if chosen.type != "cuda":
        raise UserError(
            f"device is '{chosen}'; the backend 'triton' runs on 'cuda', on 'cpu' only with TRITON_INTERPRET=1"
        )
    if not torch.cuda.is_available():
        raise UserError("backend 'triton' finds no device: torch sees no NVIDIA or AMD GPU")
    if chosen.index is not None and chosen.index >= torch.cuda.device_count():
        raise UserError(f"device is '{chosen}'; this machine has {torch.cuda.device_count()} CUDA devices")
    return chosen
