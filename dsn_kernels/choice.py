"""Which backend ``backend="auto"`` takes on a GPU: the quickest in a table of measured times."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from dsn_models.checkpoints import write_atomically
from dsn_models.errors import UserError

from . import _C
from .capture import networks, parts
from .costs import cache_folder

SCHEMA = 1
# Classes of `dsn_models` that become an operator.
OPERATORS = tuple(kind.__name__ for kind in (*networks(), *parts()))

# device name -> dtype -> operator -> backend -> milliseconds
Table = dict[str, dict[str, dict[str, dict[str, float]]]]


@dataclass(frozen=True)
class Choice:
    """A backend and why it was taken."""

    backend: str
    reason: str


def own_table_path() -> Path:
    """Where ``dsn bench --tune`` adds what it measures: ``$DSN_BACKENDS`` or a file in the user's cache."""
    given = os.environ.get("DSN_BACKENDS")
    return Path(given) if given else cache_folder() / "backends.json"


def read_table(path: Path) -> Table:
    """The times in a file; none if there is no file.

    Raises:
        UserError: it is not a table of this version.
    """
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']}")
        return document["devices"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a table of backends ({error}); delete it or write it with dsn bench --tune"
        ) from error


def times() -> Table:
    """The package's table and, over it, the user's own."""
    with resources.as_file(resources.files("dsn_kernels") / "assets" / "backends.json") as shipped:
        merged = read_table(shipped)
    for device, dtypes in read_table(own_table_path()).items():
        for dtype, operators in dtypes.items():
            merged.setdefault(device, {}).setdefault(dtype, {}).update(operators)
    return merged


def add_times(device: str, dtype: str, operators: dict[str, dict[str, float]]) -> Path:
    """Adds measured milliseconds to the user's own table; returns its path."""
    path = own_table_path()
    devices = read_table(path)
    devices.setdefault(device, {}).setdefault(dtype, {}).update(operators)
    document: dict[str, Any] = {"schema": SCHEMA, "note": "Written by `dsn bench --tune`.", "devices": devices}
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())
    return path


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Backends that might serve on a GPU; "" for one that does, else the reason why not."""
    from .triton import resolve_device

    found = {"cuda": "", "triton": ""}
    if not _C.build_info()["cuda"]:
        found["cuda"] = "this build has no CUDA kernels"
    elif torch.version.hip is not None:
        found["cuda"] = "the CUDA kernels need an NVIDIA GPU"
    try:
        if resolve_device(device, dtype).type != "cuda":
            found["triton"] = "Triton is interpreted here"
    except UserError as error:
        found["triton"] = str(error)
    return found


def choose(operator: str, device: torch.device, dtype: torch.dtype, table: Table | None = None) -> Choice:
    """The backend for an operator on a GPU: the quickest that was measured there, else CUDA before Triton.

    Args:
        operator: of :data:`OPERATORS`.
        device: the GPU.
        dtype: of weights and activations.
        table: of times; the package's and the user's if not given.

    Raises:
        UserError: nothing serves it there.
    """
    reasons = candidates(device, dtype)
    usable = [name for name, reason in reasons.items() if not reason]
    if not usable:
        raise UserError("; ".join(reasons.values()))
    name = torch.cuda.get_device_name(device)
    measured = (times() if table is None else table).get(name, {}).get(str(dtype).removeprefix("torch."), {})
    known = {backend: ms for backend, ms in measured.get(operator, {}).items() if backend in usable}
    if len(known) == len(usable) > 1:
        best = min(known, key=lambda backend: known[backend])
        return Choice(best, ", ".join(f"{backend} {ms:g} ms" for backend, ms in sorted(known.items())))
    return Choice(usable[0], "the only one" if len(usable) == 1 else f"not measured on {name}: dsn bench --tune")
