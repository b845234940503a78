"""What is asked of the GPU kernels for networks that skip units or filters, and for gradually updated ones.

    python benchmarks/gpu_bars.py gpu.json

holds what benchmarks/gpu.sh wrote against it. The figures of a rehearsal are shown as such and meet nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Family:
    """A network of the zoo, the fraction of its gates that are shut, and what is asked.

    Attributes:
        name, options: of `dsn_models.create`.
        skipped: of the gates; 0 of a network without any.
        at_least: times the best dense run.
        batches: for which that is asked.
        against: the network whose dense run counts, its own without gates if not given.
    """

    name: str
    skipped: float
    at_least: float
    batches: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    against: str = ""

    @property
    def settings(self) -> tuple[str, ...]:
        """Of the gates: all open, each sample its own, all samples the same."""
        return ("open", f"random:{self.skipped}", f"equal:{self.skipped}") if self.skipped else ("open",)


FAMILIES = (
    Family("skipnet-110-rnn", 0.5, 1.7, (1, 8, 64)),
    Family("gunn-15", 0.0, 1.0, (1, 8, 64), against="sunn-15"),
    Family("gaternet-resnet-164", 0.5, 1.5, (64,), {"gated": "all"}),
    Family("skipnet-101-rnn-imagenet", 0.3, 1.3, (8, 64)),
)
REALISED = 0.85  # of the multiply-accumulates saved
TIMES_EAGER = 3.0  # of a network without gates
WITHIN = 1.1  # patterns that all differ, times equal ones


def bars(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Each bar with what a document of benchmarks/gpu.sh holds for it, by batch, under the key ``measured``, and the
    batches for which it is ``met``. Of a rehearsal the key is ``rehearsed``, and nothing is met.

    Raises:
        ValueError: the document does not say whether it was a rehearsal, as a measurement does.
    """
    if not isinstance(document.get("rehearsal"), bool):
        raise ValueError("no measurement: it does not say whether it was a rehearsal; expected a gpu.json of gpu.sh")
    found = [entry for family in FAMILIES for entry in _family_bars(family, document)]
    if document["rehearsal"]:
        return [{"bar": name, "at_least": bar, "rehearsed": values} for name, bar, values in found]
    return [
        {"bar": name, "at_least": bar, "measured": values, "met": [int(b) for b, v in values.items() if v >= bar]}
        for name, bar, values in found
    ]


def _family_bars(family: Family, document: dict[str, Any]) -> list[tuple[str, float, dict[str, float]]]:
    rows = {
        (str(row["batch"]), row["gates"]): row
        for row in document.get("rows", [])
        if row["model"] == family.name and "ours_ms" in row
    }
    eager = {
        str(entry["batch"]): entry["ms"]["median"]
        for entry in document.get("baselines", [])
        if entry["model"] == family.name and entry["name"] == f"eager {family.name}" and "ms" in entry
    }
    setting = family.settings[1] if family.skipped else "open"

    def pick(value: Callable[[str, dict[str, Any]], float | None]) -> dict[str, float]:
        """By batch, where there is a value."""
        values = {batch: value(batch, row) for (batch, gates), row in rows.items() if gates == setting}
        return {batch: found for batch, found in values.items() if found is not None}

    def beside_equal(batch: str, row: dict[str, Any]) -> float | None:
        equal = rows.get((batch, family.settings[2]))
        return equal["ours_ms"]["median"] / row["ours_ms"]["median"] if equal else None

    percent = f", {100 * family.skipped:.0f} % skipped" if family.skipped else ""
    beside = f"dense {family.against}" if family.against else "the dense run"
    name = f"{family.name}{percent}: times {beside}"
    # Eager runs of a network that is held against another are no dense run of that one.
    found = [(name, family.at_least, pick(lambda batch, row: _times_best(row, f"eager {family.name}")))]
    if family.skipped:
        found += [
            (f"{family.name}{percent}: realised fraction", REALISED, pick(lambda _, row: row["realised_fraction"])),
            (f"{family.name}: equal patterns' time over different ones'", round(1 / WITHIN, 2), pick(beside_equal)),
        ]
    else:
        ratio = pick(lambda batch, row: eager[batch] / row["ours_ms"]["median"] if batch in eager else None)
        found.append((f"{family.name}: times eager PyTorch", TIMES_EAGER, ratio))
    return found


def _times_best(row: dict[str, Any], other: str) -> float | None:
    """The best baseline's time over ours, but for one that is another network's."""
    medians = [ms["median"] for name, ms in row["baselines_ms"].items() if name != other]
    return min(medians) / row["ours_ms"]["median"] if medians else None


def table(document: dict[str, Any]) -> str:
    """Markdown, a bar a line; the rows behind them, and what was wrong or came to nothing, follow."""
    kind = "rehearsed, not measured" if document.get("rehearsal") else "measured"
    lines = [f"| bar | at least | {kind}, by batch | met |", "|" + "---|" * 4]
    for bar in bars(document):
        values = bar.get("measured", bar.get("rehearsed", {}))
        shown = ", ".join(f"{batch}: {value:.2f}" for batch, value in values.items()) or "nothing"
        met = ", ".join(map(str, bar.get("met", []))) or "none"
        lines.append(f"| {bar['bar']} | {bar['at_least']} | {shown} | {met} |")
    lines += [_line(row) for row in document.get("rows", []) if "ours_ms" in row]
    entries = [entry for section in ("kinds", "correct") for entry in document.get(section, [])]
    wrong = [entry for entry in entries if not (entry.get("right") and entry.get("macs_right"))]
    ended = [step for step in document.get("steps", []) if step["outcome"] != "done"]
    for entry in wrong:
        said = entry.get("said") or entry.get("failed") or "multiply-accumulates are miscounted"
        lines.append(f"wrong: {entry.get('kind', entry['model'])}: {said}")
    lines += [f"{step['outcome']}: {step['step']}: {step['said']}" for step in ended]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    best = row["best_baseline"]
    beside = f", {best} {row['baselines_ms'][best]['median']:.3f} ms" if best else ""
    return f"{row['model']}, batch {row['batch']}, {row['gates']}: {row['ours_ms']['median']:.3f} ms{beside}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("document", type=Path, metavar="gpu.json")
    path = parser.parse_args().document
    try:
        print(table(json.loads(path.read_text())))
    except (OSError, ValueError) as error:
        parser.exit(2, f"{path}: {error}\n")


if __name__ == "__main__":
    main()
