"""A family of networks at its full size, against the exact result."""

from __future__ import annotations

import os

import torch

from . import networks
from .correctness import compare
from .plan import TOGETHER, Scale
from .process import Report

BATCH = 8


def run(report: Report, scale: Scale, name: str, backend: str) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // TOGETHER))  # beside the other steps
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # float32 is to be float32
    model = networks.make_timed(name, scale)
    for dtype in scale.dtypes:
        with report.entry("correct", model=name, backend=backend, dtype=dtype) as found, torch.inference_mode():
            own = getattr(torch, dtype)
            found |= compare(model, networks.accelerate(model, own, backend), own, BATCH)
