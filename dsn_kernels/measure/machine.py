"""What a measurement was taken on."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dsn_models import UserError

from ..costs import cpu_model


def affinity() -> list[int]:
    """The cores this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pin(cores: str) -> None:
    """Keeps this process on some cores, with a thread for each from now on.

    Args:
        cores: their numbers and ranges of them, such as ``"0,2-3"``.

    Raises:
        UserError: the text is no such list, or names a core that this process may not use.
    """
    chosen: set[int] = set()
    for part in cores.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not match:
            raise UserError(f"pin is {cores!r}; expected numbers of cores, such as 0,2-3")
        chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    usable = affinity()
    if not chosen or not chosen <= set(usable):
        raise UserError(f"pin is {cores!r}; expected cores of {_ranges(usable)}, which this process may use")
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("pin is served where the system can keep a process on cores, as Linux can")
    for task in Path("/proc/self/task").iterdir():  # threads that torch has started keep their own lists
        os.sched_setaffinity(int(task.name), chosen)
    torch.set_num_threads(len(chosen))


def _ranges(numbers: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` as ``0-2,5``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def describe() -> dict[str, str | int]:
    """Processor and the number of cores this process may use."""
    return {"cpu": cpu_model(), "cores": len(affinity())}


def facts() -> dict[str, Any]:
    """What a document says of where it was made: the machine, the commit and torch's version."""
    return {"commit": source_commit(), "machine": describe(), "torch": torch.__version__}


def source_commit() -> str | None:
    """The commit of the source tree that this package runs from, as :func:`commit_of`; None if installed."""
    return commit_of(Path(__file__).resolve().parents[2])


def commit_of(root: Path) -> str | None:
    """The commit of a source tree, with ``-dirty`` after changes but of documents and results; None if it is none."""
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ".", ":!docs", ":!benchmarks/results")
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("-dirty" if changed.returncode else "")
