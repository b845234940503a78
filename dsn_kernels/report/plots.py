"""Figures of measurements, for files and for pages that choose the colours by day and by night."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dsn_models import UserError
from dsn_models.lettering import choose_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Colours(NamedTuple):
    """What a figure is drawn with: text and axes, the dense network, all gates open, skipping, and on what."""

    ink: str
    dense: str
    open: str
    skipping: str
    paper: str


# In a page these stand for what its style sheet calls them.
PAGE = Colours("#010101", "#020202", "#030303", "#040404", "#050505")
PRINT = Colours("#1d2329", "#98a2ab", "#7fb2e5", "#1463b8", "#ffffff")
FORMATS = ("svg", "png", "pdf")


def blank(size: tuple[float, float]) -> Figure:
    """An empty figure, its size in inches."""
    # Here, because matplotlib takes a second to import, which commands that draw nothing can do without.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def styled(axes: Axes, colours: Colours = PAGE) -> Axes:
    """Ink for text and the two axes, nothing else."""
    axes.tick_params(colors=colours.ink)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(colours.ink)
    axes.xaxis.label.set_color(colours.ink)
    axes.yaxis.label.set_color(colours.ink)
    axes.patch.set_alpha(0)
    return axes


def inline_svg(figure: Figure) -> str:
    """A figure drawn with :data:`PAGE` as SVG inside HTML, in the page's colours."""
    figure.patch.set_alpha(0)
    svg = _saved(figure, "svg").decode()
    svg = svg[svg.index("<svg") :]  # an XML prologue has no place inside HTML
    variables = {colour: f"var(--{name})" for name, colour in PAGE._asdict().items()}
    colours = re.compile("|".join(variables))
    # In tags alone: a class may be called by a colour.
    return re.sub("<[^>]*>", lambda tag: colours.sub(lambda colour: variables[colour[0]], tag[0]), svg)


def picture(draw: Callable[[Colours], Figure], kind: str) -> bytes:
    """A figure as the content of a file of its own.

    Raises:
        UserError: ``kind`` is none of :data:`FORMATS`.
    """
    check_picture(kind)
    return _saved(draw(PRINT), kind)


def check_picture(kind: str) -> None:
    """Refuses a kind of picture that is none of :data:`FORMATS`.

    Raises:
        UserError: it is none.
    """
    if kind not in FORMATS:
        raise UserError(f"picture is '.{kind}'; expected one of {', '.join('.' + known for known in FORMATS)}")


def _saved(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context

    data = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    choose_fonts(figure)
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}), warnings.catch_warnings():
        # A box stands for it in a picture; an SVG holds the text, which the viewer draws with its own fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(data, format=kind, dpi=150, metadata=dates.get(kind))
    return data.getvalue()


class Measure(NamedTuple):
    """What a sweep's accuracy is drawn against: in words, the axis' label, and its value at a point."""

    words: str
    label: str
    value: Callable[[dict[str, Any]], float]


def _skipped(point: dict[str, Any]) -> float:
    return 100 * _mean([value["mean"] for value in point["skipped"].values()])


SWEEP_MEASURES = {
    "skipped": Measure("what was skipped", "skipped, %", _skipped),
    "macs": Measure("MACs", "MACs, % of dense", lambda point: 100 * point["macs_fraction"]),
    "latency": Measure("latency", "latency of a batch, ms", lambda point: point["latency_ms"]["mean"]),
}


def sweep_panel(document: dict[str, Any], key: str, colours: Colours, axes: Axes | None = None) -> Figure:
    """Mean accuracy against one of :data:`SWEEP_MEASURES`: every point of a sweep, the Pareto front as a line.

    The square is every gate forced open, the ring the network's own thresholds; bars are 95 % confidence intervals.
    Dual Skipping Networks, figure 4.

    Args:
        document: of :func:`dsn_kernels.tuning.sweep.sweep`.
        key: of the measure.
        colours: to draw in.
        axes: to draw on; a figure of its own if not given.
    """
    if axes is None:
        axes = blank((4.6, 3.0)).subplots()
    points, opened, measure = document["points"], document["open"], SWEEP_MEASURES[key].value
    batch = document["latency"]["batch"]
    styled(axes, colours).set_xlabel(SWEEP_MEASURES[key].label.replace("a batch", f"batch {batch}"))
    axes.scatter([measure(p) for p in points], [_accuracy(p) for p in points], 8, colours.open)
    front = sorted((points[i] for i in document["front"]), key=measure)
    style: dict[str, Any] = {"color": colours.skipping, "marker": "o", "markersize": 3, "capsize": 2}
    if key == "latency":
        style["xerr"] = [point["latency_ms"]["high"] - point["latency_ms"]["mean"] for point in front]
    widths = list(zip(*(_half_widths(point) for point in front), strict=True))
    axes.errorbar([measure(point) for point in front], [*map(_accuracy, front)], yerr=widths, elinewidth=0.7, **style)
    axes.scatter([measure(opened)], [_accuracy(opened)], 40, colours.dense, marker="s")
    own = [point for point in points if point["thresholds"] == document["own_thresholds"]]
    ring: dict[str, Any] = {"facecolors": "none", "edgecolors": colours.ink, "linewidths": 1.5}
    axes.scatter([measure(p) for p in own], [_accuracy(p) for p in own], 90, **ring)
    axes.set_ylabel("mean accuracy, %" if len(opened["error"]) > 1 else "accuracy, %")
    return cast("Figure", axes.figure)


def sweep_figure(document: dict[str, Any], colours: Colours = PAGE) -> Figure:
    """The panels of all :data:`SWEEP_MEASURES` side by side."""
    figure = blank((9.6, 3.2))
    panels = figure.subplots(1, len(SWEEP_MEASURES), sharey=True)
    for axes, key in zip(panels, SWEEP_MEASURES, strict=True):
        sweep_panel(document, key, colours, axes)
    for axes in panels[1:]:
        axes.set_ylabel("")
    return figure


def load_figure(document: dict[str, Any], colours: Colours = PAGE) -> Figure:
    """Median and 99th percentile of the latency against the load; the dotted line is the time allowed."""
    figure = blank((6.4, 3.2))
    axes = styled(figure.subplots(), colours)
    for network in dict.fromkeys(row["network"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["network"] == network]
        rates = [row["rate"] for row in rows]
        plot = partial(axes.plot, rates, color=getattr(colours, network), marker="o", markersize=3)
        plot([row["p99"] for row in rows], label=f"{network}, 99th percentile")
        plot([row["p50"] for row in rows], label=f"{network}, median", linestyle="--")
    axes.axhline(document["slo_ms"], color=colours.ink, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_xlabel("requests a second")
    axes.set_ylabel("milliseconds")
    axes.legend(frameon=False, labelcolor=colours.ink, fontsize=8)
    return figure


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _accuracy(point: dict[str, Any]) -> float:
    return 100 * (1 - float(point["mean_error"]))


def _half_widths(point: dict[str, Any]) -> tuple[float, float]:
    """How far the mean accuracy's interval reaches at most below and above, in per cent: the mean of the tasks'."""
    errors = list(point["error"].values())
    return (
        100 * _mean([error["high"] - error["mean"] for error in errors]),
        100 * _mean([error["mean"] - error["low"] for error in errors]),
    )
