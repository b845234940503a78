"""Builds the kernels for the device at hand; in a rehearsal the host runner that takes its place."""

from __future__ import annotations

import os
import subprocess
import sys

from .plan import ROOT, Scale
from .process import Report


def run(report: Report, scale: Scale) -> None:
    command, variables = [sys.executable, "setup.py", "build_ext", "--inplace"], {}
    if scale.rehearsal:
        command = [sys.executable, "csrc/simt/build.py"]
    else:
        import torch

        major, minor = torch.cuda.get_device_capability()
        variables = {
            "FORCE_CUDA": "1",
            "MAX_JOBS": str(os.cpu_count() or 1),
            "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}" + "a" * (major == 9),
        }
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}; the end of it is in steps.log")
