"""What takes the place of a device in a rehearsal, and what is made to go wrong there."""

from __future__ import annotations

import contextlib
import importlib.abc
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .plan import Scale

MISSING = ("kornia", "pydantic", "triton")


class Blocked(importlib.abc.MetaPathFinder):
    """Finds no package of ``names``."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}: taken away", name=name)


def block(names: tuple[str, ...] = MISSING) -> None:
    """As if these packages were not installed."""
    for module in list(sys.modules):
        if module.partition(".")[0] in names:
            del sys.modules[module]
    sys.meta_path.insert(0, Blocked(names))


def install(scale: Scale, step: str) -> None:
    """Puts the stand-ins in, and the fault that strikes this step."""
    if "missing" in scale.faults:
        block()
    if step != "build":  # what the others need may not be built yet
        _install_device()
        _install_kernels({fault for fault, where in scale.faults.items() if where == step})


def _install_device() -> None:
    """Graphs, streams and events that do nothing or ask the host's clock; no compiler."""
    import torch

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = time.perf_counter()

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return max(1e3 * (end.at - self.at), 1e-6)

    class Stream:
        def wait_stream(self, other: Stream) -> None: ...

    class CUDAGraph:
        def replay(self) -> None: ...

    properties = SimpleNamespace(name="none, a rehearsal", multi_processor_count=132, total_memory=0, L2_cache_size=1)
    stand_ins: dict[str, Any] = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": CUDAGraph,
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph: contextlib.nullcontext(),
        "current_stream": lambda device=None: Stream(),
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device: properties,
        "get_device_capability": lambda device=None: (9, 0),
    }
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    cuda: Any = lambda self: self  # noqa: E731
    torch.Tensor.cuda = torch.nn.Module.cuda = cuda  # type: ignore[method-assign]
    torch.compile = lambda model, **options: model  # type: ignore[assignment]


def _install_kernels(faults: set[str]) -> None:
    """The host runner for the CUDA kernels; ``faults`` strike where a plan is run."""
    import dsn_kernels
    from csrc.simt import host_runner

    built = host_runner.load_simt(build_first=False)  # the first step has; others may be building beside
    host_runner.load_simt = lambda: built
    real, run = dsn_kernels.accelerate, host_runner.HostRunner.forward

    def accelerate(model: Any, dtype: Any, backend: str, cuda_graph: Any = False) -> Any:
        return real(model, dtype=dtype, backend="simt" if backend == "cuda" else backend)

    def faulty(self: Any, *inputs: Any) -> Any:
        out = run(self, *inputs)
        for fault in faults:
            out = FAULTY[fault](out)
        return out

    dsn_kernels.accelerate = accelerate
    if faults:
        host_runner.HostRunner.forward = faulty  # type: ignore[method-assign]


def _hang(out: Any) -> Any:
    """As a process does that waits for a kernel without end: no signal but SIGKILL ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    while True:
        time.sleep(1)


def _fault(out: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


FAULTY: dict[str, Callable[[Any], Any]] = {
    "hang": _hang,
    "wrong": lambda out: out._replace(logits=out.logits + 0.1),
    "fault": _fault,
}


def make_tools(folder: Path) -> Path:
    """Puts a compute-sanitizer there that runs its command and finds nothing."""
    folder.mkdir()
    script = folder / "compute-sanitizer"
    script.write_text('#!/bin/sh\nshift 4\n"$@" && echo "========= ERROR SUMMARY: 0 errors"\n')
    script.chmod(0o755)
    return folder
