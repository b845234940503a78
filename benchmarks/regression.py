"""Two measurements of the same thing on one machine: what became faster or slower, and what is noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsn_models import UserError

# Of rows that were written without an estimate of their noise.
_UNKNOWN_NOISE = 0.1


@dataclass(frozen=True)
class Change:
    """A row that both documents have.

    Attributes:
        what: such as ``"batch 8, gates open"`` or a kernel's name.
        before, after: milliseconds, medians.
        noise: how far the two may differ though nothing changed: both rows' noise, and what the dense baselines, whose
            code is not ours, changed by.
    """

    what: str
    before: float
    after: float
    noise: float

    @property
    def ratio(self) -> float:
        """Time after by time before."""
        return self.after / self.before

    @property
    def verdict(self) -> str:
        if abs(math.log(self.ratio)) <= math.log1p(self.noise):
            return "="
        return "slower" if self.ratio > 1 else "faster"


def read(path: Path) -> dict[str, Any]:
    """A document of ``dsn bench --json`` or of the kernels.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no results at {path}; make bench writes them") from None
    except ValueError:
        raise UserError(f"{path} is no JSON; expected what make bench writes") from None
    if not isinstance(document, dict) or document.get("schema") != 1 or not isinstance(document.get("rows"), list):
        raise UserError(f"{path} holds no benchmark of schema 1; expected what make bench writes")
    return document


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The rows that both documents have, in the order of ``after``.

    Raises:
        UserError: the documents are of different models, machines or numbers of threads, or share no row.
    """
    for key in ("model", "machine", "threads"):
        if before.get(key) != after.get(key):
            raise UserError(f"{key} was {before.get(key)!r} and is {after.get(key)!r}; only the same can be compared")
    earlier = {_name(row): row for row in before["rows"]}
    found = []
    for row in after["rows"]:
        old = earlier.get(_name(row))
        if old is not None:
            noise = (1 + _noise(old)) * (1 + _noise(row)) * (1 + _drift(old, row)) - 1
            found.append(Change(_name(row), _median(old), _median(row), noise))
    if not found:
        raise UserError("the two measurements share no row; expected batch sizes and gates that both have")
    return found


def _name(row: Mapping[str, Any]) -> str:
    return row["kernel"] if "kernel" in row else f"batch {row['batch']}, gates {row['gates']}"


def _median(row: Mapping[str, Any]) -> float:
    return row["ours_ms"]["median"]


def _noise(row: Mapping[str, Any]) -> float:
    noise = row.get("noise")
    return _UNKNOWN_NOISE if noise is None else noise


def _drift(old: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """The largest change of a dense baseline that both rows timed: the machine's, not ours."""
    both = set(old.get("baselines_ms", {})) & set(row.get("baselines_ms", {}))
    logs = (math.log(row["baselines_ms"][name]["median"] / old["baselines_ms"][name]["median"]) for name in both)
    return math.expm1(max(map(abs, logs), default=0.0))
