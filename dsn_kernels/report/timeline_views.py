"""A timeline as a table's rows, as JSON, as a trace and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dsn_models.checkpoints import write_atomically
from dsn_models.errors import UserError

from ..measure.timeline import WHOLE_BATCH, Timeline
from ..measure.timeline import timeline as measure
from .plots import FORMATS, PAGE, Colours, blank, picture, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLUMNS = ("step", "ran", "µs if run", "share", "MACs if run", "GFLOP/s")


class ShownTimeline(Timeline):
    """A timeline that shows itself: printed, by :meth:`table`, in a notebook, and in files of :meth:`save`.

    >>> import torch, dsn_models, dsn_kernels
    >>> fast = dsn_kernels.accelerate(dsn_models.create("dsn-navon", image_size=16))
    >>> dsn_kernels.timeline(fast, torch.rand(2, 1, 16, 16), runs=1).save("trace.json").name
    'trace.json'
    """

    def table(self, top: int = 30) -> str:
        """The ``top`` steps that took the most, in the network's order, as text; what the others took together last."""
        columns = list(zip(COLUMNS, *cells(self, top), strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = zip(*columns, strict=True)
        return "\n".join(
            "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(row_widths))
            for row_widths in (list(zip(line, widths, strict=True)) for line in lines)
        )

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.table()}"

    def _repr_html_(self) -> str:
        lines = [("th", COLUMNS), *(("td", row) for row in cells(self, 30))]
        body = "".join(
            "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>" for tag, row in lines
        )
        return f"<table><caption>{self._title()}</caption>{body}</table>"

    def _title(self) -> str:
        return f"batch {len(self.ran)}, {self.threads} threads: {self.total_ms:.2f} ms"

    def save(self, path: str | Path) -> Path:
        """Writes the trace for ui.perfetto.dev (``.json``), or the picture of samples by layers (``.svg``, ``.png``,
        ``.pdf``).

        Raises:
            UserError: the name ends otherwise, or the file cannot be written.
        """
        path = Path(path)
        kind = path.suffix.removeprefix(".")
        if kind == "json":
            write_atomically(path, json.dumps(trace(self)).encode())
        elif kind in FORMATS:
            write_atomically(path, picture(partial(timeline_figure, self), kind))
        else:
            raise UserError(f"{path} ends in {path.suffix!r}; expected .json for a trace, or .{', .'.join(FORMATS)}")
        return path


def timeline(fast: Any, images: Tensor, gates: Mapping[str, Tensor] | None = None, *, runs: int = 5) -> ShownTimeline:
    """Runs an accelerated network on a batch and tells which step ran for which image, and what it cost.

    Args and errors are those of :func:`dsn_kernels.measure.timeline.timeline`.

    >>> import torch, dsn_models, dsn_kernels
    >>> fast = dsn_kernels.accelerate(dsn_models.create("dsn-navon", image_size=16))
    >>> found = dsn_kernels.timeline(fast, torch.rand(2, 1, 16, 16), runs=1)
    >>> print(found.table(top=1).splitlines()[0].split()[:2])
    ['step', 'ran']
    """
    return ShownTimeline(**vars(measure(fast, images, gates, runs=runs)))


def cells(timeline: Timeline, top: int) -> list[tuple[str, ...]]:
    """A table's cells, under :data:`COLUMNS`: the ``top`` steps that took the most, in the network's order, and what
    the others took together."""
    every = rows(timeline)
    costly = sorted(every, key=lambda row: row["share"], reverse=True)[:top]
    found: list[tuple[str, ...]] = [
        (
            row["name"],
            f"{100 * row['ran']:.1f} %",
            "-" if row["ms_if_run"] is None else f"{1e3 * row['ms_if_run']:.1f}",
            f"{100 * row['share']:.1f} %",
            "-" if row["macs_if_run"] is None else f"{row['macs_if_run'] / 1e6:.2f} M",
            "-" if row["gflops"] is None else f"{row['gflops']:.0f}",
        )
        for row in every
        if row in costly
    ]
    if len(every) > len(costly):
        rest = sum(row["share"] for row in every) - sum(row["share"] for row in costly)
        found.append((f"{len(every) - len(costly)} others", "", "", f"{100 * rest:.1f} %", "", ""))
    return found


def rows(timeline: Timeline) -> list[dict[str, Any]]:
    """Per step, in the network's order: ``name``, ``branch``, ``gate``; ``ran``, the mean fraction that ran;
    ``ms_if_run`` and ``macs_if_run``, medians over the samples that ran it (None if none did), and ``gflops`` by them
    (None without MACs); ``share`` of all milliseconds."""
    whole = timeline.ms.sum().item() or 1.0
    found = []
    for i, name in enumerate(timeline.steps):
        ms, macs, ran = timeline.ms[:, i], timeline.macs[:, i], timeline.ran[:, i] > 0
        median_ms = ms[ran].median().item() if ran.any() else None
        median_macs = macs[ran].median().item() if ran.any() else None
        found.append(
            {
                "name": name,
                "branch": timeline.branches[i],
                "gate": timeline.gates[i],
                "ran": timeline.ran[:, i].mean().item(),
                "ms_if_run": median_ms,
                "macs_if_run": median_macs,
                "share": ms.sum().item() / whole,
                "gflops": 2 * median_macs / median_ms / 1e6 if median_macs and median_ms else None,
            }
        )
    return found


def kinds(timeline: Timeline) -> list[dict[str, Any]]:
    """Per kind of step, the costliest first: ``kind``; ``steps`` of it; ``share`` of the threads' time while the call
    lasted; ``gflops`` of a thread (None without MACs). What the shares leave of 1 is outside of steps: waiting, the
    framework, Python."""
    found: dict[str, list[int]] = {}
    for i, kind in enumerate(timeline.kinds):
        found.setdefault(kind, []).append(i)
    all_rows = []
    for kind, columns in found.items():
        ms, macs = timeline.ms[:, columns].sum().item(), timeline.macs[:, columns].sum().item()
        share = ms / (timeline.total_ms * timeline.threads)
        gflops = 2 * macs / ms / 1e6 if macs and ms else None
        all_rows.append({"kind": kind, "steps": len(columns), "share": share, "gflops": gflops})
    return sorted(all_rows, key=lambda row: row["share"], reverse=True)


def document(timeline: Timeline) -> dict[str, Any]:
    """Everything but the spans, for JSON: :func:`rows`, each with ``ran_by_sample`` and ``ms_by_sample``, and
    :func:`kinds`."""
    steps = [
        {**row, "ran_by_sample": timeline.ran[:, i].tolist(), "ms_by_sample": timeline.ms[:, i].tolist()}
        for i, row in enumerate(rows(timeline))
    ]
    facts = {"batch": len(timeline.ran), "threads": timeline.threads, "total_ms": timeline.total_ms}
    return {**facts, "steps": steps, "kinds": kinds(timeline)}


def trace(timeline: Timeline) -> dict[str, Any]:
    """The spans in the Trace Event Format, which Perfetto and chrome://tracing open: a track per thread."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "tid": thread, "name": "thread_name", "args": {"name": f"thread {thread}"}}
        for thread in sorted({span.thread for span in timeline.spans})
    ]
    for span in timeline.spans:
        whole = span.sample == WHOLE_BATCH
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": span.thread,
                "name": timeline.steps[span.step],
                "cat": timeline.branches[span.step] or "network",
                "ts": span.start / 1e3,
                "dur": (span.end - span.start) / 1e3,
                "args": {"sample": "all" if whole else span.sample, "macs": span.macs},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def timeline_figure(timeline: Timeline, colours: Colours = PAGE) -> Figure:
    """Samples by layers, coloured by the time that each took; blank where a layer did not run.

    Shown are the steps that the kernels did MACs in or that a gate may shut, branches side by side.
    """
    shown = [i for i, gate in enumerate(timeline.gates) if gate >= 0 or bool(timeline.macs[:, i].any())]
    cells = np.where(timeline.ran[:, shown].numpy() > 0, timeline.ms[:, shown].numpy() * 1e3, np.nan)
    cells[cells <= 0] = np.nan
    batch, width = cells.shape
    figure = blank((min(16.0, 3.0 + 0.11 * width), min(12.0, 2.2 + 0.12 * batch)))
    axes = styled(figure.subplots(), colours)
    norm = "log" if np.isfinite(cells).any() else None
    image = axes.imshow(cells, aspect="auto", interpolation="nearest", cmap="viridis", norm=norm)
    axes.set_ylabel("sample")
    axes.set_yticks(range(0, batch, max(1, batch // 16)))
    step = max(1, width // 40)
    names = [timeline.steps[i] for i in shown]
    axes.set_xticks(range(0, width, step), names[::step], rotation=90, fontsize=6)
    branches = [timeline.branches[i] for i in shown]
    for i in range(1, width):
        if branches[i] != branches[i - 1]:
            axes.axvline(i - 0.5, color=colours.ink, linewidth=0.8)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("microseconds", color=colours.ink)
    bar.ax.tick_params(colors=colours.ink, which="both")
    return figure
