"""gpu.json: everything that was found, written as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Document:
    """The JSON file; every change is written at once, beside and then renamed.

    Lists by section: ``steps`` (what each ended with), ``kinds``, ``correct``, ``rows`` (as ``dsn bench --json`` has
    them, and the network), ``baselines``, ``triton``, ``tests``, ``sanitizer``. An entry that came to nothing has
    ``failed``, which says why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {}

    def set(self, **values: Any) -> None:
        self.content.update(values)
        self._write()

    def add(self, section: str, entry: dict[str, Any]) -> None:
        self.content.setdefault(section, []).append(entry)
        if section == "baselines" and "ms" in entry:
            self._join(entry)
        self._write()

    def _join(self, baseline: dict[str, Any]) -> None:
        """Puts a baseline into the rows of its network and batch."""
        for row in self.content.get("rows", []):
            if "ours_ms" not in row or (row["model"], row["batch"]) != (baseline["model"], baseline["batch"]):
                continue
            found = row["baselines_ms"]
            found[baseline["name"]] = baseline["ms"]
            best = min(found, key=lambda name: found[name]["median"])
            row["best_baseline"] = best
            row["speedup_vs_best"] = found[best]["median"] / row["ours_ms"]["median"]

    def _write(self) -> None:
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.content, indent=2) + "\n")
        beside.replace(self.path)
