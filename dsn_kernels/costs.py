"""What grouping samples by their filter masks saves and costs here: measured once, kept in the user's cache."""

from __future__ import annotations

import contextlib
import json
import os
from functools import cache
from pathlib import Path

from dsn_models.checkpoints import write_atomically
from dsn_models.errors import UserError

from . import _C

SCHEMA = 1
_NAMES = ("fetch", "pack", "reload")


def cache_folder() -> Path:
    """Where the package keeps what it has measured: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsn-kernels"


def costs_path() -> Path:
    """The file with the costs of machines that share this cache."""
    return cache_folder() / "costs.json"


@cache
def costs() -> dict[str, float]:
    """The constants of the cost model, in seconds per byte; measured, in a fiftieth of a second, if not known yet.

    A thread takes the group of samples side by side that makes

        W (fetch / group + pack / min(group, run)) + reload * M(group)

    least, with W the bytes of weights that masks choose from, ``run`` the samples of equal masks in a row and M the
    bytes of maps that leave the second cache for as many samples. Results do not depend on it. The kernels are told.
    """
    from .measure.machine import cpu_model

    path, machine = costs_path(), f"{cpu_model()}, {_C.build_info()['isa']}"
    known = _read(path)
    if machine not in known:
        known = {**known, machine: _C.measure_costs()}
        document = {"schema": SCHEMA, "unit": "seconds per byte", "machines": known}
        with contextlib.suppress(UserError):  # without a cache the next process measures again
            write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
    found = known[machine]
    _C.set_costs(**found)
    return found


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Costs by machine; none where the file is missing or not one of ours."""
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            return {}
        return {
            name: {key: float(entry[key]) for key in _NAMES}
            for name, entry in document["machines"].items()
            if all(0 <= float(entry[key]) < 1 for key in _NAMES)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
