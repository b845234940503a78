"""What an accelerated model runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Target:
    """A backend and how it is used.

    Attributes:
        backend: one of :data:`dsn_kernels.runtime.runner.RUNNERS`: ``"cpu"``, ``"cuda"`` or ``"triton"``.
        dtype: of weights and activations. On the CPU float32, or bfloat16: of the products of convolutions alone.
        cuda_graph: replay the launches as CUDA graphs: True, or the batch sizes to capture.

    >>> import dsn_kernels
    >>> dsn_kernels.Target().backend
    'cpu'
    """

    backend: str = "cpu"
    dtype: torch.dtype = torch.float32
    cuda_graph: bool | Sequence[int] = False

    @property
    def map_dtype(self) -> torch.dtype:
        """The dtype of maps between the parts of a network, and of what enters its graph."""
        return torch.float32 if self.backend == "cpu" else self.dtype


CPU = Target()
