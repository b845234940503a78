"""What the measurements are taken on."""

from __future__ import annotations

import platform

import torch

import dsn_kernels
from dsn_kernels.measure import machine

from .plan import DTYPES, Scale
from .process import Report


def run(report: Report, scale: Scale) -> None:
    torch.ones(1).cuda().add_(1).cpu()  # a device that does not compute is none
    properties = torch.cuda.get_device_properties(0)
    report.set(
        device="cuda",
        torch=torch.__version__,
        commit=machine.source_commit(),
        machine=machine.describe() | {"gpu": properties.name},
        dtype=DTYPES[0],
        seed=0,
        l2_cache="flushed before each call that is no graph replay; replays follow one another",
        environment={
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": list(torch.cuda.get_device_capability()),
            "cuda_of_torch": torch.version.cuda,
            "python": platform.python_version(),
            "build": dsn_kernels._C.build_info(),
        },
    )
