"""How a network shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from torch import Tensor

from .macs import count_macs

_NOUNS = {"coarse": "coarse layers", "fine": "fine layers"}


class Described:
    """A network of the zoo with ``_repr_html_``: a small table of what it is and of what its last call did."""

    def _repr_html_(self: Any) -> str:
        counts = getattr(self, "gate_counts", {})
        gates = getattr(self, "last_gates", {})
        parameters = sum(parameter.numel() for parameter in self.parameters())
        dense = getattr(self, "dense_equivalent", lambda: self)()
        limits = _thresholds(self.config, len(counts))
        return card(self.config.name, counts, limits, gates, parameters, count_macs(dense, self.config))


def _thresholds(config: Any, branches: int) -> list[Sequence[float]]:
    """Of each branch: one for all its layers, or theirs."""
    if getattr(config, "layer_thresholds", None) is not None:
        return [config.layer_thresholds]
    if hasattr(config, "thresholds"):
        return [(limit,) for limit in config.thresholds]
    return [(config.threshold,)] * branches if branches else []


def card(
    title: str,
    counts: Mapping[str, int],
    thresholds: Sequence[Sequence[float]],
    last_gates: Mapping[str, Tensor],
    parameters: int,
    dense_macs: int,
    last_macs: Tensor | None = None,
) -> str:
    """An HTML table.

    Per branch: gates, the thresholds at which they open, how many were open in the last call. Then the parameters, the
    MACs per image of the dense network and those of the last call.

    Args:
        title: its caption.
        counts: gates by branch, none of a network without gates.
        thresholds: of each branch, one or many.
        last_gates: [B, L] of 0 and 1 by branch; empty before the first call.
        parameters: of the network.
        dense_macs: per image, every gate open.
        last_macs: [B], counted in the last call; their mean is told.
    """
    rows = []
    for (name, count), limits in zip(counts.items(), thresholds, strict=True):
        low, high = (f"{value:.3g}" for value in (min(limits), max(limits)))
        gates = last_gates.get(name)
        ran = "-" if gates is None or not len(gates) else f"{100 * gates.double().mean().item():.1f} %"
        rows.append((_NOUNS.get(name, name), f"{count:,}", low if low == high else f"{low} to {high}", ran))
    facts = [("parameters", f"{parameters:,}"), ("MACs per image, dense", f"{dense_macs / 1e6:,.2f} M")]
    if last_macs is not None and len(last_macs):
        macs = last_macs.double().mean().item()
        facts.append(("MACs per image, last call", f"{macs / 1e6:,.2f} M ({100 * macs / dense_macs:.1f} %)"))
    head = _row("th", ("", "gates", "threshold", "open in the last call")) if rows else ""
    body = "".join(_row("td", row) for row in rows)
    tail = "".join(f'<tr><td>{key}</td><td colspan="3">{value}</td></tr>' for key, value in facts)
    return f"<table><caption>{escape(title)}</caption>{head}{body}{tail}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
