"""compute-sanitizer on one kind of kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .plan import ROOT, Scale
from .process import Report

NAME = "compute-sanitizer"
TELLS = re.compile(r"ERROR SUMMARY|Device not supported|RACECHECK SUMMARY|hazard|Error")


def find() -> str:
    """On PATH, or in the toolkit's folder: CUDA_HOME's, that of nvcc, or /usr/local/cuda.

    Raises:
        FileNotFoundError: it is not there.
    """
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and str(Path(nvcc).resolve().parents[1]), "/usr/local/cuda"]
    folders = [f"{home}/{folder}" for home in homes if home for folder in ("bin", NAME)]
    if found := shutil.which(NAME) or shutil.which(NAME, path=os.pathsep.join(folders)):
        return found
    raise FileNotFoundError(f"{NAME} is neither on PATH nor in {', '.join(folders)}")


def run(report: Report, scale: Scale, tool: str, kind: str) -> None:
    with report.entry("sanitizer", tool=tool, kind=kind) as found:
        command = [find(), "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "gpu.kinds", kind]
        command += ["--rehearse"] * scale.rehearsal
        done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(done.stdout)
        told = [line.strip("= ") for line in done.stdout.splitlines() if TELLS.search(line)]
        found |= {"exit_status": done.returncode, "said": told[-1] if told else "no errors"}
