"""The phases of a run, in order: what comes first is worth most, and what may take longest is last."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .plan import KINDS, MODEL, ROOT, SANITIZERS, TIMED, Scale
from .process import IMPORTS, Step

# Where each fault of a rehearsal strikes: one step, or every process.
FAULTS = {
    "hang": "kind residual stage",
    "wrong": "correct skipnet-110-rnn",
    "fault": "ours gunn-15",
    "missing": "",
}


@dataclass(frozen=True)
class Phase:
    """Steps of one sort.

    Attributes:
        least: seconds that the phases ahead leave to it.
        most: seconds that it takes from those behind, however many of its steps are left.
        together: several steps at a time, since nothing is timed.
    """

    name: str
    steps: Callable[[Scale], list[Step]]
    least: float
    most: float = 525.0
    together: bool = False


def _limit(scale: Scale, seconds: float) -> float:
    return 40.0 if scale.rehearsal else seconds


def build(scale: Scale) -> list[Step]:
    return [Step("build", "build", 900.0 if scale.rehearsal else 260.0, fresh=True)]


def environment(scale: Scale) -> list[Step]:
    return [Step("environment", "environment", _limit(scale, 40))]


def kinds(scale: Scale) -> list[Step]:
    return [
        Step(f"kind {kind}", "kinds", _limit(scale, 30), (kind,), "kinds", {"kind": kind, "model": KINDS[kind].model})
        for kind in KINDS
    ]


def correct(scale: Scale) -> list[Step]:
    return [
        Step(f"correct {model}", "correct", _limit(scale, 90), (model, "cuda"), "correct", {"model": model})
        for model in scale.checked
    ]


def ours(scale: Scale) -> list[Step]:
    return [Step(f"ours {model}", "ours", _limit(scale, 60), (model,), "rows", {"model": model}) for model in TIMED] + [
        Step("host waits", "host_waits", _limit(scale, 30))
    ]


def dense(scale: Scale) -> list[Step]:
    return [
        Step(f"dense {model}", "dense", _limit(scale, 60), (model,), "baselines", {"model": model}) for model in TIMED
    ]


def tests(scale: Scale) -> list[Step]:
    files = sorted(path.name for path in (ROOT / "tests" / "cuda").glob("test_*.py"))
    if scale.rehearsal:
        files = ["test_graphs.py"]
    return [
        Step(f"tests {name}", "tests", _limit(scale, 80), (f"tests/cuda/{name}",), "tests", {"file": name}, fresh=True)
        for name in files
    ]


def triton(scale: Scale) -> list[Step]:
    return [
        Step(f"triton {model}", "triton", _limit(scale, 60), (model,), "triton", {"model": model}) for model in TIMED
    ]


def sanitizer(scale: Scale) -> list[Step]:
    kinds = list(KINDS)[:2] if scale.rehearsal else list(KINDS)
    tools = SANITIZERS[:1] if scale.rehearsal else SANITIZERS
    return [
        Step(f"{tool} {kind}", "sanitizer", _limit(scale, 60) + IMPORTS * scale.rehearsal, (tool, kind), "sanitizer",
             {"tool": tool, "kind": kind}, fresh=True)
        for tool in tools
        for kind in kinds
    ]  # fmt: skip


def compilers(scale: Scale) -> list[Step]:
    """What tunes nothing first, for every network."""
    named = [("default", model) for model in TIMED]
    named += [(mode, MODEL) for mode in ("reduce-overhead", "max-autotune", "tensorrt")]
    return [
        Step(f"compile {mode} {model}", "compilers", _limit(scale, 120), (mode, model), "baselines",
             {"model": model, "name": mode})
        for mode, model in named
    ]  # fmt: skip


PHASES = (
    Phase("build", build, 0),
    Phase("environment", environment, 10),
    Phase("kinds", kinds, 20, together=True),
    Phase("correct", correct, 30, together=True),
    Phase("ours", ours, 70),
    Phase("dense", dense, 40),
    Phase("tests", tests, 40, most=80, together=True),
    Phase("triton", triton, 25, most=60),
    Phase("sanitizer", sanitizer, 25, most=60, together=True),
    Phase("compilers", compilers, 30),
)


def faults_of(text: str) -> dict[str, str]:
    """``{fault: step}`` of a list such as ``"hang,wrong"``.

    Raises:
        ValueError: there is no such fault.
    """
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in FAULTS]:
        raise ValueError(f"inject is {unknown[0]!r}; expected some of {', '.join(FAULTS)}")
    return {name: FAULTS[name] for name in names}


def find_gpu() -> str:
    """Why there is no device to measure, a line; empty if there is one."""
    script = (
        "import sys\n"
        "try: import torch\n"
        "except ImportError: sys.exit(f'no torch for {sys.executable}; install one with CUDA or set PYTHON')\n"
        "if not torch.cuda.is_available():\n"
        "  sys.exit(f'no GPU that torch {torch.__version__} can use; run this on a machine with one')\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, timeout=IMPORTS)
    except subprocess.TimeoutExpired:
        return f"torch was not imported within {IMPORTS:.0f} s"
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""
