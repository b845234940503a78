"""What a thread saves and pays by taking samples side by side here: measured once, kept in the user's cache."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from functools import cache
from pathlib import Path

from dsn_models.checkpoints import write_atomically
from dsn_models.errors import UserError

from . import _C

SCHEMA = 1
_NAMES = ("fetch", "pack", "reload")
_FORCED = {"resident": (0.0, 0.0, 1.0), "compacted": (1.0, 1.0, 0.0)}


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where the package keeps what it has measured: in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path.home() / ".cache") / "dsn-kernels"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"dsn-kernels-{os.getuid()}"


def costs_path() -> Path:
    """The file with the costs of machines that share this cache."""
    return cache_folder() / "costs.json"


@cache
def costs() -> dict[str, float]:
    """The constants of the cost model, in seconds per byte; measured, in a fiftieth of a second, if not known yet.

    A thread takes the group of samples side by side, a layer at a time, that makes

        W fetch / group + C pack / min(group, run) + reload M(group)

    least, with W the bytes of all weights, C of those that masks choose from, ``run`` the samples of equal masks in a
    row and M the bytes of maps that leave the second cache for as many samples: the *compacted* strategy. Where no mask
    chooses and the second cache holds a sample's state, it takes one sample at a time, the *resident* strategy. Results
    do not depend on it. The kernels are told.

    ``DSN_STRATEGY=resident`` or ``compacted`` puts constants in place of the measured ones that lead to one sample at a
    time, or to as many as 64 MiB hold and threads leave.

    Raises:
        UserError: ``DSN_STRATEGY`` is neither, or ``DSN_ISA`` no instruction set.
    """
    if strategy := os.environ.get("DSN_STRATEGY"):
        if strategy not in _FORCED:
            raise UserError(f"DSN_STRATEGY is {strategy!r}; expected one of {', '.join(_FORCED)}, or none")
        forced = dict(zip(_NAMES, _FORCED[strategy], strict=True))
        _C.set_costs(**forced)
        return forced
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
