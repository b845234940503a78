"""Where the host waits for the GPU in a call, read from a trace of torch's profiler."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_RANGE = "dsn call"
_API = ("cuda_runtime", "cuda_driver")
_LAUNCH = re.compile(r"(cuda|cu)(Launch|GraphLaunch)")
# What returns when the device is done, or may: cudaMalloc and cudaFree, but not the Async ones, drain it.
_WAITS = re.compile(r"Synchronize|(cuda|cu)(Malloc|Free|MemAlloc|MemFree|HostAlloc|HostRegister)(?!.*Async)")
_COPY = re.compile(r"(cuda|cu)Memcpy")


def host_waits(trace: Mapping[str, Any], label: str = _RANGE) -> list[str]:
    """Calls of the CUDA runtime and driver within ``record_function(label)`` that make the host wait, by name.

    What lies outside of the range, such as the synchronisation with which the profiler itself ends, is not of the call.
    A copy waits if it is not asynchronous, goes to the host or touches pageable memory; its direction is that of the
    device's own record of it, and where that is missing the copy counts as one that waits.

    Args:
        trace: as ``torch.profiler.profile.export_chrome_trace`` writes it.
        label: of the range.

    Raises:
        ValueError: the trace has no such range, or no launch in it: nothing was observed.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    ranges = [
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] == label
    ]
    if not ranges:
        raise ValueError(f"the trace has no range {label!r}")
    calls = [
        event
        for event in events
        if event.get("cat") in _API and any(begin <= event["ts"] <= end for begin, end in ranges)
    ]
    if not any(_LAUNCH.match(event["name"]) for event in calls):
        raise ValueError(f"the trace has no launch within {label!r}: the profiler did not see the device")
    copies = {event["args"]["correlation"]: event["name"] for event in events if event.get("cat") == "gpu_memcpy"}
    return sorted({reason for event in calls if (reason := _why_it_waits(event, copies))})


def _why_it_waits(event: Mapping[str, Any], copies: Mapping[int, str]) -> str | None:
    name: str = event["name"]
    if not _COPY.match(name):
        return name if _WAITS.search(name) else None
    if "Async" not in name:
        return name
    copy = copies.get(event.get("args", {}).get("correlation"), "direction unknown")
    to_host_or_pageable = "DtoH" in copy or "Pageable" in copy or copy == "direction unknown"
    return f"{name}: {copy}" if to_host_or_pageable else None


def observe(call: Callable[[], object]) -> list[str]:
    """Calls ``call`` under the profiler, once warm, and returns its :func:`host_waits`."""
    from torch.profiler import ProfilerActivity, profile, record_function

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler, record_function(_RANGE):
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return host_waits(json.loads(path.read_text()))
