"""What a thread saves and pays by taking samples side by side here: measured once, kept in the user's cache."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dsn_models.checkpoints import write_atomically
from dsn_models.errors import UserError

from . import _C

SCHEMA = 1


class Costs(NamedTuple):
    """Constants of the CPU's cost model, in seconds per byte; see :func:`costs`. None: one sample at a time.

    Attributes:
        fetch: of weights that are not in the second cache.
        pack: of weights of which a mask chooses some.
        reload: of maps that are not in the second cache, while a convolution reads them.
    """

    fetch: float = 0.0
    pack: float = 0.0
    reload: float = 0.0


NO_COSTS = Costs()
_FORCED = {"resident": Costs(0.0, 0.0, 1.0), "compacted": Costs(1.0, 1.0, 0.0)}


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


def costs() -> Costs:
    """What lowering tells a plan of the CPU: ``DSN_STRATEGY``'s constants if it is set, else this machine's.

    A thread takes the group of samples side by side, a layer at a time, that makes

        W fetch / group + C pack / min(group, alike) + reload M(group)

    least, with W the bytes of all weights, C of those that masks choose from, ``alike`` the samples of equal masks in
    a row and M the bytes of maps that leave the second cache for as many samples: the *compacted* strategy. Where no
    mask chooses and the second cache holds a sample's state, it takes one sample at a time, the *resident* strategy.
    Results do not depend on it.

    ``DSN_STRATEGY=resident`` or ``compacted`` puts constants in place of the measured ones that lead to one sample at a
    time, or to as many as 64 MiB hold and threads leave.

    Raises:
        UserError: ``DSN_STRATEGY`` is neither, or ``DSN_ISA`` no instruction set.
    """
    if strategy := os.environ.get("DSN_STRATEGY"):
        if strategy not in _FORCED:
            raise UserError(f"DSN_STRATEGY is {strategy!r}; expected one of {', '.join(_FORCED)}, or none")
        return _FORCED[strategy]
    return measured_costs()


@cache
def measured_costs() -> Costs:
    """This machine's constants: from the cache, or measured in a fiftieth of a second.

    Raises:
        UserError: ``DSN_ISA`` is no instruction set.
    """
    path, machine = costs_path(), f"{cpu_model()}, {_C.build_info()['isa']}"
    known = _read(path)
    if machine not in known:
        known = {**known, machine: Costs(**_C.measure_costs())}
        entries = {name: entry._asdict() for name, entry in known.items()}
        document = {"schema": SCHEMA, "unit": "seconds per byte", "machines": entries}
        with contextlib.suppress(UserError):  # without a cache the next process measures again
            write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
    return known[machine]


def _read(path: Path) -> dict[str, Costs]:
    """Costs by machine; none where the file is missing or not one of ours."""
    try:
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA:
            return {}
        return {
            name: Costs(*(float(entry[key]) for key in Costs._fields))
            for name, entry in document["machines"].items()
            if all(0 <= float(entry[key]) < 1 for key in Costs._fields)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
