"""``dsn bench --tune``: which backend is quicker for each operator on this GPU."""

from __future__ import annotations

import torch
from rich.table import Table

from dsn_models import UserError

from .. import choice
from ..tuning.tune import tune
from .common import console, millis, write_json


def tune_backends(device: str, dtype: torch.dtype, seconds: float, json: str | None) -> None:
    """Times every backend of a GPU for each operator and adds the times to the user's table.

    Raises:
        UserError: the device is no GPU that is here.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device is {device!r}; expected cuda or cuda:N") from None
    if chosen.type != "cuda":
        raise UserError(f"device is {device!r}; --tune times the backends of a GPU: expected --device cuda")
    if (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is {device!r}; this machine has {torch.cuda.device_count()} CUDA devices")
    shown = console(stderr=True)
    found = tune(
        chosen,
        dtype,
        seconds,
        lambda operator, ms: shown.print(f"{operator}: " + ", ".join(f"{k} {millis(v)} ms" for k, v in ms.items())),
    )
    name = torch.cuda.get_device_name(chosen)
    short = str(dtype).removeprefix("torch.")
    path = choice.add_times(name, short, found)
    if json is not None:
        write_json({"schema": choice.SCHEMA, "devices": {name: {short: found}}}, json)
        return
    table = Table(title=f"{name}, {short}, batch 32: median ms; kept in {path}")
    for column in ("operator", "cuda", "triton", "auto takes"):
        table.add_column(column)
    for operator, ms in found.items():
        cells = (millis(ms[backend]) if backend in ms else "-" for backend in ("cuda", "triton"))
        table.add_row(operator, *cells, choice.choose(operator, chosen, dtype).backend if ms else "-")
    console().print(table)
