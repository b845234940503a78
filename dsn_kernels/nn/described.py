"""How an accelerated network shows itself in a notebook."""

from __future__ import annotations

from html import escape
from typing import Any

from dsn_models.dual_skipping import BRANCHES


class Described:
    """An accelerated network with ``_repr_html_``: a small table of what it is and of what its last call did."""

    def _repr_html_(self: Any) -> str:
        """Per branch: gates, the thresholds at which they open, how many were open in the last call; then parameters of
        the network it was made from, MACs per image of its dense network, and those of the last call, the mean."""
        rows, first = [], 0
        for name, count in self.layers.items():
            limits = self.thresholds[first : first + count]
            low, high = (f"{float(value):.3g}" for value in (limits.min(), limits.max()))
            gates = self.last_gates.get(name)
            ran = "-" if gates is None or not len(gates) else f"{100 * gates.double().mean().item():.1f} %"
            what = f"{name} layers" if name in BRANCHES else name
            rows.append((what, f"{count:,}", low if low == high else f"{low} to {high}", ran))
            first += count
        facts = [
            ("parameters", f"{self.num_parameters:,}"),
            ("MACs per image, dense", f"{self.dense_macs / 1e6:,.2f} M"),
        ]
        if len(self.last_macs):
            macs = self.last_macs.double().mean().item()
            share = f"{100 * macs / self.dense_macs:.1f} %"
            facts.append(("MACs per image, last call", f"{macs / 1e6:,.2f} M ({share})"))
        head = _row("th", ("", "gates", "threshold", "open in the last call")) if rows else ""
        body = "".join(_row("td", row) for row in rows)
        tail = "".join(f'<tr><td>{key}</td><td colspan="3">{value}</td></tr>' for key, value in facts)
        name = escape(f"{self.config.name}, accelerated")
        return f"<table><caption>{name}</caption>{head}{body}{tail}</table>"


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
