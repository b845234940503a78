"""``dsn info``: what was built and what runs here."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch
from rich.table import Table

import dsn_kernels
import dsn_models
from dsn_models import UserError

from .. import choice
from ..costs import costs
from ..measure import machine
from .common import JsonOption, check_writable, console, write_json

_BACKENDS = ("cpu", "cuda", "triton", "reference")
_PEERS = ("triton", "onnxruntime", "openvino", "onnx", "tensorboard")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _backends() -> dict[str, str]:
    """Of each backend ``runs``, after running it, or why not."""
    torch.manual_seed(0)
    model = dsn_models.create("dsn-navon", image_size=16).eval()
    image = torch.rand(1, 1, 16, 16)
    states = {}
    for name in _BACKENDS:
        try:
            fast = dsn_kernels.accelerate(model, backend=name)
            device = next((b.device for b in fast.buffers()), image.device)
            if name == "triton" and device.type == "cpu":
                states[name] = "runs in Triton's interpreter"
                continue
            with torch.inference_mode():
                fast(image.to(device))
            states[name] = "runs"
        except UserError as error:
            states[name] = f"not here: {error}"
        except RuntimeError as error:
            states[name] = f"fails: {str(error).splitlines()[0]}"
    return states


def _choices() -> dict[str, str]:
    """What ``backend="auto"`` takes for each operator, and why."""
    if not torch.cuda.is_available():
        return {"every operator": "cpu (no GPU)"}
    device, found = torch.device("cuda"), {}
    for operator in choice.OPERATORS:
        for dtype in (torch.float32, torch.float16):
            try:
                taken = choice.choose(operator, device, dtype)
                text = f"{taken.backend} ({taken.reason})"
            except UserError as error:
                text = str(error)
            found[f"{operator}, {str(dtype).removeprefix('torch.')}"] = text
    return found


def collect() -> dict[str, Any]:
    """The facts as ``dsn info --json`` writes them."""
    grouping = costs()  # first of all: it refuses an unknown DSN_ISA or DSN_STRATEGY
    devices = ["cpu", *dsn_kernels._C.cuda_devices()]
    if error := dsn_kernels._C.cuda_error():
        devices.append(f"no CUDA device: {error}")
    return {
        "schema": 1,
        "dsn_kernels": _version("dsn-kernels"),
        "commit": machine.source_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "build": dsn_kernels._C.build_info(),
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "backends": _backends(),
        "auto": _choices(),
        "grouping": {f"{name}, s/byte": value for name, value in grouping._asdict().items()},
        "models": dsn_models.names(),
        "packages": {name: _version(name) for name in _PEERS},
    }


def info(json: JsonOption = None) -> None:
    """What was built, and what runs here."""
    check_writable(json, weights=False)
    facts = collect()
    if json is not None:
        write_json(facts, json)
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        if key == "schema":
            continue
        if isinstance(value, dict):
            for name, entry in value.items():
                shown = f"{entry:.2g}" if isinstance(entry, float) else str(entry)
                table.add_row(f"{key}.{name}", "-" if entry is None else shown)
        elif isinstance(value, list):
            table.add_row(key, ", ".join(value))
        else:
            table.add_row(key, "-" if value is None else str(value))
    console().print(table)
