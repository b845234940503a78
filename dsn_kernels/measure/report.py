"""The demo's report: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import jinja2
import matplotlib
import torch
from matplotlib.figure import Figure

from dsn_models.dual_skipping import BRANCHES

from .demo import DemoRun
from .plots import PAGE, inline_svg, styled


def latency_figure(latency: list[dict[str, Any]]) -> str:
    """Bars of milliseconds per image by batch size: dense, all layers, skipping. Returns inline SVG."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    series = (
        ("dense_ms", "dense, PyTorch", PAGE.dense),
        ("open_ms", "our kernels, every layer", PAGE.open),
        ("skipping_ms", "our kernels, skipping", PAGE.skipping),
    )
    for i, (key, label, colour) in enumerate(series):
        heights = [row[key]["median"] / row["batch"] for row in latency]
        places = [x + (i - 1) * 0.27 for x in range(len(latency))]
        bars = axes.bar(places, heights, 0.25, label=label, color=colour)
        labels = [f"{h:.0f}" if h >= 10 else f"{h:.2g}" for h in heights]
        axes.bar_label(bars, labels, padding=2, color=PAGE.ink, fontsize=8)
    axes.set_xticks(range(len(latency)), [f"batch {row['batch']}" for row in latency])
    axes.set_ylabel("milliseconds per image")
    styled(axes).margins(y=0.15)
    axes.legend(frameon=False, labelcolor=PAGE.ink)
    return inline_svg(figure)


def png(image: torch.Tensor) -> str:
    """An image [C, H, W], 1 or 3 channels in [0, 1], as a data URL."""
    pixels = image.clamp(0, 1)
    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels.mean(0).numpy()
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, array, cmap="gray", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def by_block(values: Sequence[Any], block_layers: Sequence[int]) -> list[Sequence[Any]]:
    """``values`` cut into groups of ``block_layers``."""
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
                    "blocks": by_block(taken, run.block_layers),
                }
            )
        cards.append({"png": png(run.images[i]), "branches": branches})
    return cards


def template(name: str) -> jinja2.Template:
    """A page of the package's assets."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dsn_kernels", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["ms"] = lambda value: f"{value:.2f}" if value < 100 else f"{value:.0f}"
    environment.filters["mega"] = lambda value: f"{value / 1e6:.2f} M"
    return environment.get_template(name)


def render(run: DemoRun, cards: int = 12) -> str:
    """The report as one HTML document: summary, layer use, latency plot, and ``cards`` digits with their layers."""
    ran = {branch: by_block(run.document["ran"][branch], run.block_layers) for branch in BRANCHES}
    return template("report.html.j2").render(
        d=run.document,
        branches=BRANCHES,
        ran=ran,
        cards=_cards(run, cards),
        latency_svg=latency_figure(run.document["latency"]),
    )
