"""What comes first in every account of a network: what its gates save, then what the kernels gain; each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Timing(NamedTuple):
    """One batch size.

    Attributes:
        batch: images.
        saved: of the time of the same kernels with all gates open, what the network's own gates save.
        saved_called: whether that is more than noise.
        best: the fastest way of running the dense network; None where none was timed.
        gained: its time over that of the kernels with all gates open.
        gained_called: whether that is more than noise.
    """

    batch: int
    saved: float
    saved_called: bool
    best: str | None
    gained: float
    gained_called: bool


class Accuracy(NamedTuple):
    """Accuracies by task: of the network, of the same with all gates open, and of the network that it began with, as
    its checkpoint tells; empty where it does not. The former two are of ``images`` test images."""

    own: Mapping[str, float]
    opened: Mapping[str, float]
    started: Mapping[str, float]
    images: int


def gates_line(rows: Sequence[Timing], macs_saved: float, accuracy: Accuracy | None, gates: str = "own") -> str:
    """What gates save beside the same kernels with all gates open: time, MACs, and accuracy."""
    times = [f"{_percent(row.saved)} at batch {row.batch}{_noise(row.saved_called)}" for row in rows]
    parts = ([f"time {', '.join(times)}"] if times else []) + [f"MACs {_percent(macs_saved)}"]
    line = f"Its {gates} gates save, beside the same kernels with all gates open: {'; '.join(parts)}."
    return line if accuracy is None else f"{line} {_accuracies(accuracy)}"


def kernels_line(rows: Sequence[Timing], tried: Sequence[str]) -> str:
    """What the kernels gain with all gates open beside the fastest dense runtime of those tried; "" of none."""
    gains = [
        f"{row.gained:.2f}x the speed of {row.best} at batch {row.batch}{_noise(row.gained_called)}"
        for row in rows
        if row.best is not None
    ]
    if not gains:
        return ""
    of = f"the fastest of {', '.join(tried)}" if len(tried) > 1 else "the only dense runtime timed"
    return f"Kernels, all gates open, beside {of}: {', '.join(gains)}."


def started_from(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy by task of the network that a checkpoint's training began with; empty where it does not tell."""
    test, start = metadata.get("test"), metadata.get("start")
    found = test.get("given") if isinstance(test, dict) else None
    if not found and isinstance(start, dict):
        found = start.get("test")
    found = found if isinstance(found, dict) else {}
    return {task: of["accuracy"] for task, of in found.items() if isinstance(of, dict) and "accuracy" in of}


def _accuracies(accuracy: Accuracy) -> str:
    parts = []
    for task, own in accuracy.own.items():
        name = f"{task} accuracy" if len(accuracy.own) > 1 else "accuracy"
        beside = [f"{_percent(accuracy.opened[task])} with all gates open"]
        if task in accuracy.started:
            beside.append(f"{_percent(accuracy.started[task])} of the network it began with")
        parts.append(f"{name} {_percent(own)} ({', '.join(beside)})")
    return f"On {accuracy.images:,} test images {', '.join(parts)}."


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _noise(called: bool) -> str:
    return "" if called else " (within noise)"
