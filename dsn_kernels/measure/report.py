"""The demo's report: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
from typing import Any

import jinja2
import matplotlib
import torch
from matplotlib.figure import Figure

from dsn_models.dual_skipping import BRANCHES

from .demo import DemoRun

# Colours of the figures; the page's style sheet says what they are by day and by night.
_INK, _DENSE, _OPEN, _SKIPPING = "#010101", "#020202", "#030303", "#040404"
_STYLE_NAMES = {_INK: "var(--ink)", _DENSE: "var(--dense)", _OPEN: "var(--open)", _SKIPPING: "var(--skipping)"}


def latency_figure(latency: list[dict[str, Any]]) -> str:
    """Bars of milliseconds per image by batch size: dense, all layers, skipping. Returns inline SVG."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    series = (
        ("dense_ms", "dense, PyTorch", _DENSE),
        ("open_ms", "our kernels, every layer", _OPEN),
        ("skipping_ms", "our kernels, skipping", _SKIPPING),
    )
    for i, (key, label, colour) in enumerate(series):
        heights = [row[key]["median"] / row["batch"] for row in latency]
        places = [x + (i - 1) * 0.27 for x in range(len(latency))]
        bars = axes.bar(places, heights, 0.25, label=label, color=colour)
        labels = [f"{h:.0f}" if h >= 10 else f"{h:.2g}" for h in heights]
        axes.bar_label(bars, labels, padding=2, color=_INK, fontsize=8)
    axes.set_xticks(range(len(latency)), [f"batch {row['batch']}" for row in latency])
    axes.set_ylabel("milliseconds per image", color=_INK)
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.margins(y=0.15)
    axes.legend(frameon=False, labelcolor=_INK)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]  # an XML prologue has no place inside HTML
    for colour, name in _STYLE_NAMES.items():
        svg = svg.replace(colour, name)
    return svg


def _png(image: torch.Tensor) -> str:  # [C, H, W] in [0, 1] -> data URL
    array = image.mean(0).clamp(0, 1).numpy()
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, array, cmap="gray", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _by_block(values: list[Any], block_layers: tuple[int, ...]) -> list[list[Any]]:
    blocks, first = [], 0
    for count in block_layers:
        blocks.append(values[first : first + count])
        first += count
    return blocks


def _cards(run: DemoRun, count: int) -> list[dict[str, Any]]:
    """Digits from the one with the fewest layers to the one with the most, evenly between."""
    used = sum(run.gates[branch].long().sum(1) for branch in BRANCHES)
    assert isinstance(used, torch.Tensor)
    order = used.argsort(stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, min(count, len(order))).long()].tolist()
    cards = []
    for i in chosen:
        branches = []
        for branch in BRANCHES:
            taken = run.gates[branch][i].tolist()
            branches.append(
                {
                    "name": branch,
                    "label": int(run.labels[branch][i]),
                    "predicted": int(run.predictions[branch][i]),
                    "ran": sum(taken),
                    "of": len(taken),
                    "blocks": _by_block(taken, run.block_layers),
                }
            )
        cards.append({"png": _png(run.images[i]), "branches": branches})
    return cards


def render(run: DemoRun, cards: int = 12) -> str:
    """The report as one HTML document: summary, layer use, latency plot, and ``cards`` digits with their layers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dsn_kernels", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["ms"] = lambda value: f"{value:.2f}" if value < 100 else f"{value:.0f}"
    ran = {branch: _by_block(run.document["ran"][branch], run.block_layers) for branch in BRANCHES}
    return environment.get_template("report.html.j2").render(
        d=run.document,
        branches=BRANCHES,
        ran=ran,
        cards=_cards(run, cards),
        latency_svg=latency_figure(run.document["latency"]),
    )
