"""Figures of :mod:`dsn_models.statistics`, as matplotlib figures: ``plot_gate_kinds(...).savefig("gates.svg")``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .lettering import choose_fonts
from .lettering import label as plain
from .statistics import GateKinds


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_gate_kinds(kinds: GateKinds) -> Figure:
    """Bars per unit: always on, input-dependent, always off, in % of the unit's gates. GaterNet, figure 2."""
    figure, axes = _axes("unit", "gates, %")
    places, floor = np.arange(1, len(kinds.always_on) + 1), np.zeros(len(kinds.always_on))
    for label, values in (
        ("always on", kinds.always_on),
        ("input-dependent", kinds.input_dependent),
        ("always off", kinds.always_off),
    ):
        axes.bar(places, 100 * values, 0.9, bottom=floor, label=label)
        floor = floor + 100 * values
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def plot_samples_on(counts: np.ndarray, samples: int) -> Figure:
    """Histogram of :func:`dsn_models.statistics.samples_on`, of ``samples`` in all. GaterNet, figure 3."""
    figure, axes = _axes("samples for which an input-dependent gate is on", "gates")
    axes.hist(counts, bins=50, range=(0, samples))
    return figure


def plot_gates_on(counts: np.ndarray) -> Figure:
    """Histogram of :func:`dsn_models.statistics.gates_on`. GaterNet, figure 4."""
    figure, axes = _axes("gates on", "samples")
    axes.hist(counts, bins=min(50, int(np.ptp(counts)) + 1))
    return figure


def plot_embedding(points: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None) -> Figure:
    """Gate vectors in the plane, [N, 2], coloured by label [N], named by ``classes`` if given. GaterNet, figure 5."""
    figure, axes = _axes("", "")
    for label in np.unique(labels):
        chosen = points[labels == label]
        name = str(label) if classes is None else plain(classes[int(label)])
        axes.scatter(chosen[:, 0], chosen[:, 1], s=4, label=name)
    axes.set_xticks([])
    axes.set_yticks([])
    figure.legend(loc="outside right center", frameon=False, markerscale=3)
    choose_fonts(figure)
    return figure
