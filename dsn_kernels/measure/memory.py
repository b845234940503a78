"""Peak memory of serving a network, each in a process of its own: what ran before would hide it."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OURS = "ours"
_STATUS = Path("/proc/self/status")
_CALLS = 3


def _resident(key: str) -> float:
    """MiB by a line of /proc/self/status: VmRSS now, VmHWM at the peak."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def _settle() -> None:
    """Gives freed memory back to the system and makes the present the peak so far."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory(name: str, network: nn.Module, images: Tensor) -> dict[str, Any]:
    """Runs a network in a new process and returns ``{"mib": float}``, or ``{"not_available": reason}``.

    Counted is the peak of resident memory over three calls beyond that of a process that has run a small network, in
    eager PyTorch and in ours: weights, working memory, outputs, and the libraries of any other runtime. What building
    took and gave back is not counted.

    Args:
        name: ``"ours"`` for the accelerated network, or one of ``baselines.BASELINES``.
        network: the reference network for ours, the network without gates for a baseline; in ``eval()`` mode.
        images: [B, C, H, W].
    """
    if not _STATUS.exists():
        return {"not_available": "memory is read from /proc/self/status, which this system has not"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        torch.save((network, images), path)
        command = [sys.executable, "-m", __name__, name, str(path), str(torch.get_num_threads())]
        child = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(child.stdout)
    except ValueError:
        last = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        return {"not_available": last[:300]}


def _measure(name: str, path: str) -> dict[str, Any]:
    import dsn_kernels
    import dsn_models

    from .baselines import BaselineUnavailable, build
    from .networks import open_gates, run

    small = dsn_models.create("resnet-20", stage_units=(1, 1, 1), image_size=8).eval()
    with torch.inference_mode():
        for warm in (small, dsn_kernels.accelerate(small)):
            warm(torch.zeros(2, 3, 8, 8))
    _settle()
    before = _resident("VmRSS")
    network, images = torch.load(path, weights_only=False)
    with torch.inference_mode():
        call: Callable[[], object]
        if name == OURS:
            call = partial(run, dsn_kernels.accelerate(network), images, open_gates(network, len(images)))
        else:
            try:
                call = partial(build(name, network, images), images)
            except BaselineUnavailable as error:
                return {"not_available": str(error)}
        del network
        _settle()
        for _ in range(_CALLS):
            call()
    return {"mib": round(_resident("VmHWM") - before, 1)}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(_measure(*sys.argv[1:3])))
