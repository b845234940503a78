"""What every operator refuses: inputs that want gradients, which no kernel computes."""

from __future__ import annotations

import torch
from torch import Tensor

from dsn_models.errors import UserError


def refuse_gradients(*inputs: Tensor | None) -> None:
    """Refuses inputs that require gradients where gradients are recorded; they would be cut off without a word.

    Raises:
        UserError: one of ``inputs`` requires gradients and gradients are enabled.
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        raise UserError(
            "an input requires gradients and the kernels are for inference, they compute none: call under "
            "torch.inference_mode(), detach() the input, or take the reference model"
        )
