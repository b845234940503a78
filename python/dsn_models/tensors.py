"""What weights must be, wherever they come from or go to, and what logits tell."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import UserError

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_finite(name: str, tensor: Tensor, of: str = "") -> None:
    """Refuses NaN and infinity.

    Raises:
        UserError: there are some; names the tensor, and the file that it is ``of``.
    """
    if not tensor.is_floating_point() or bool(tensor.isfinite().all()):
        return
    what = "NaN" if bool(tensor.isnan().any()) else "infinity"
    raise UserError(
        f"tensor {name!r}{f' of {of}' if of else ''} holds {what}; its training diverged, take other weights"
    )


def hint(x: object, dims: int) -> str:
    """What to add to a message on a tensor that should have ``dims`` dimensions and lacks the first; else nothing.

    >>> hint(torch.zeros(3, 32, 32), 4)
    ': add a batch dimension, images[None]'
    """
    return ": add a batch dimension, images[None]" if isinstance(x, Tensor) and x.dim() == dims - 1 else ""


TOP = 5  # of the top-5 error, which is told of a task of more classes than that


def among_largest(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether an image's label is among its five largest logits: [B, classes] and int64 [B] to bool [B]."""
    return (logits.topk(TOP, 1).indices == labels[:, None]).any(1)
