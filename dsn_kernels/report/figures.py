"""The figures of a report. Each is drawn in the colours it is given: a page's, or those of a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from dsn_models.lettering import label as plain
from dsn_models.statistics import GateKinds, gates_on

from .plots import PAGE, Colours, blank, inline_svg, picture, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (4.6, 3.0)  # inches; text stays readable where a phone shows it 340 pixels wide
_LEGEND_CLASSES = 20
_TICKS = 15
_NUMBER = re.compile(r"\d+")


class Drawing(NamedTuple):
    """A figure of a page: its name in file names, what stands under it, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Colours], Figure]

    def svg(self) -> str:
        """For a page."""
        return inline_svg(self.draw(PAGE))

    def file(self, kind: str) -> bytes:
        """For a file of a kind in :data:`dsn_kernels.report.plots.FORMATS`."""
        return picture(self.draw, kind)


def _axes(colours: Colours, size: tuple[float, float] = _SIZE) -> tuple[Figure, Axes]:
    figure = blank(size)
    return figure, styled(figure.subplots(), colours)


def latency_figure(rows: Sequence[Mapping[str, Any]], colours: Colours) -> Figure:
    """Bars of milliseconds per image by batch size: the dense network and its baselines, every gate open, skipping."""
    figure, axes = _axes(colours)
    names = list(dict.fromkeys(name for row in rows for name in row["baselines_ms"]))
    series: list[tuple[str, str, str, list[Any]]] = [
        ("dense, eager PyTorch", colours.dense, "", [row["dense_ms"] for row in rows])
    ]
    for name, hatch in zip(names, cycle(("///", "...", "xxx")), strict=False):
        series.append((f"dense, {name}", colours.dense, hatch, [row["baselines_ms"].get(name) for row in rows]))
    series.append(("ours, all gates open", colours.open, "", [row["open_ms"] for row in rows]))
    series.append(("ours, own gates", colours.skipping, "", [row["skipping_ms"] for row in rows]))
    width = 0.8 / len(series)
    for i, (label, colour, hatch, latencies) in enumerate(series):
        heights = [0.0 if ms is None else ms["median"] / row["batch"] for ms, row in zip(latencies, rows, strict=True)]
        places = [x + (i - (len(series) - 1) / 2) * width for x in range(len(rows))]
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": colours.paper, "linewidth": 0}
        bars = axes.bar(places, heights, 0.93 * width, label=label, **style)
        labels = [f"{h:.0f}" if h >= 10 else f"{h:.2g}" if h else "" for h in heights]
        axes.bar_label(bars, labels, padding=2, color=colours.ink, fontsize=8 if len(series) < 5 else 6)
    axes.set_xticks(range(len(rows)), [f"batch {row['batch']}" for row in rows])
    axes.set_ylabel("milliseconds per image")
    axes.margins(y=0.15)
    axes.legend(frameon=False, labelcolor=colours.ink, fontsize=8)
    return figure


def macs_figure(rows: Mapping[str, float], colours: Colours) -> Figure:
    """Bars of MACs per image: of the dense network, with every gate open, as papers count, and executed."""
    figure, axes = _axes(colours, (_SIZE[0], 0.6 + 0.45 * len(rows)))
    kinds = [colours.dense, colours.open, *[colours.skipping] * len(rows)][: len(rows)]
    bars = axes.barh(list(rows), [macs / 1e6 for macs in rows.values()], 0.6, color=kinds)
    axes.bar_label(bars, [f"{macs / 1e6:.3g}" for macs in rows.values()], padding=2, color=colours.ink, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("million MACs per image")
    return figure


def classes_figure(
    ran: np.ndarray,
    blocks: Sequence[int],
    names: Sequence[str],
    unit: str,
    colours: Colours,
    cells: Sequence[str] = (),
) -> Figure:
    """How much each class skipped of each layer: ``ran`` [classes, layers] in [0, 1], NaN of a class without images.

    ``names`` are the classes', ``cells`` the layers', of which the numbers are shown.
    """
    figure, axes = _axes(colours, (_SIZE[0], float(np.clip(0.22 * len(ran) + 0.9, 2.2, 6.0))))
    edges = (0.5, ran.shape[1] + 0.5, len(ran) - 0.5, -0.5)
    image = axes.imshow(
        100 * (1 - ran), extent=edges, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="none"
    )
    for edge in np.cumsum(blocks)[:-1]:
        axes.axvline(edge + 0.5, color=colours.ink, linewidth=0.8)
    axes.set_xlabel(unit)
    if cells and all(_NUMBER.search(cell) for cell in cells):
        step = -(-len(cells) // _TICKS)
        numbers = [_NUMBER.findall(cell)[-1] for cell in cells[::step]]
        axes.set_xticks(range(1, len(cells) + 1, step), numbers, fontsize=8)
    if len(ran) <= _LEGEND_CLASSES:
        axes.set_yticks(range(len(ran)), [plain(name) for name in names], fontsize=8)
    else:
        axes.set_ylabel("class")
    bar = figure.colorbar(image, ax=axes, label="skipped, %")
    bar.ax.tick_params(colors=colours.ink)
    bar.ax.yaxis.label.set_color(colours.ink)
    return figure


def kinds_figure(kinds: GateKinds, what: str, colours: Colours) -> Figure:
    """Bars per block or unit: gates that are on for every image, for some, for none. GaterNet, figure 2."""
    figure, axes = _axes(colours)
    places, floor = np.arange(1, len(kinds.always_on) + 1), np.zeros(len(kinds.always_on))
    parts = (
        ("always on", kinds.always_on, colours.open),
        ("depend on the image", kinds.input_dependent, colours.skipping),
        ("always off", kinds.always_off, colours.dense),
    )
    for label, values, colour in parts:
        axes.bar(places, 100 * values, 0.9, bottom=floor, label=label, color=colour)
        floor = floor + 100 * values
    axes.set_xlabel(what)
    axes.set_ylabel("gates, %")
    if len(places) <= _LEGEND_CLASSES:
        axes.set_xticks(places)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, labelcolor=colours.ink, fontsize=8)
    return figure


def gates_on_figure(gates: np.ndarray, colours: Colours) -> Figure:
    """Histogram of how many gates were on per image. GaterNet, figure 4."""
    figure, axes = _axes(colours)
    counts = gates_on(gates)
    step = max(1, -(-int(np.ptp(counts) + 1) // 30))
    edges = np.arange(counts.min(), counts.max() + step + 1, step) - 0.5
    axes.hist(counts, bins=edges.tolist(), color=colours.skipping, rwidth=0.9)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(f"gates on, of {gates.shape[1]}")
    axes.set_ylabel("images")
    return figure


def _apart(places: np.ndarray) -> np.ndarray:
    """Points that coincide, laid round their place as the seeds of a sunflower are, in random order."""
    _, group, sizes = np.unique(places.round(4), axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((np.random.default_rng(0).random(len(places)), group.ravel()))
    rank = np.empty(len(places))
    rank[order] = np.concatenate([np.arange(size) for size in sizes])
    angle, radius = rank * np.pi * (3 - 5**0.5), 0.008 * np.ptp(places, axis=0).max() * np.sqrt(rank)
    return places + np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def embedding_figure(places: np.ndarray, labels: np.ndarray, names: Sequence[str], colours: Colours) -> Figure:
    """Images at ``places`` [N, 2], coloured by class; those at one place lie round it. GaterNet, figure 5."""
    figure, axes = _axes(colours)
    places = _apart(places)
    for label in np.unique(labels):
        chosen = labels == label
        colour = f"C{label % 10}" if len(names) <= 10 else None
        axes.scatter(places[chosen, 0], places[chosen, 1], 6, color=colour, linewidths=0, label=plain(names[label]))
    axes.set_axis_off()
    if len(names) <= _LEGEND_CLASSES:
        options: dict[str, Any] = {"frameon": False, "labelcolor": colours.ink, "fontsize": 8}
        figure.legend(loc="outside right center", markerscale=2, handletextpad=0.1, **options)
    return figure


def feature_maps_figure(images: Tensor, maps: Mapping[str, Mapping[str, Tensor]], colours: Colours) -> Figure:
    """Images [N, C, H, W] in [0, 1] and beside each what its features look like. Dual Skipping Networks, figure 5."""
    columns = ["image", *next(iter(maps.values()))]
    rows = [(i, name) for i in range(len(images)) for name in maps]
    figure, axes = _axes(colours, (_SIZE[0], 0.3 + (_SIZE[0] - 0.4) / len(columns) * len(rows)))
    for y, (i, name) in enumerate(rows):
        shown = images[i].permute(1, 2, 0) if images.shape[1] == 3 else images[i].mean(0)
        cells = [(shown, "gray"), *((maps[name][label][i], "viridis") for label in columns[1:])]
        for x, (cell, cmap) in enumerate(cells):
            place = (x + 0.03, x + 0.97, y + 0.97, y + 0.03)
            axes.imshow(cell.numpy(), cmap=cmap, vmin=0, vmax=1, interpolation="none", extent=place)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=8)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [name for _, name in rows], fontsize=8, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
