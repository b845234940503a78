"""``dsn convert``: released weights to our checkpoints, and SkipNets back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import dsn_models
from dsn_models import UserError, checkpoints
from dsn_models.convert import FORMATS, convert, export_skipnet

from .common import MANY, JsonOption, check_writable, console, write_json


def _report(facts: dict[str, Any], json: str | None) -> None:
    if json is not None:
        write_json({"schema": 1, **facts}, json)
        return
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int) else str(value))
    console().print(table)


def convert_command(
    source: Annotated[Path, typer.Argument(help=f"Released weights ({', '.join(FORMATS)}), or a SkipNet of ours.")],
    out: Annotated[
        Path | None, typer.Argument(help="The checkpoint; SOURCE's name with .safetensors, here, if not given.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Zoo name, checked; told from the keys if not given.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, max=MANY, help="Expected class count; refused if another.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="skipnet: from a checkpoint of ours to its authors' format.")] = None,
    json: JsonOption = None,
) -> None:
    """Convert released weights to a checkpoint; the file is read without running code from it."""
    out = out or Path(source.stem + (".safetensors" if to is None else ".pth"))
    if to is not None:
        if to != "skipnet":
            raise UserError(f"--to is {to!r}; only 'skipnet' can be written")
        if model is not None or classes is not None:
            raise UserError("--model and --classes are for reading released weights; leave them out with --to")
    check_writable(out)
    check_writable(json)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the file to convert; choose another name for the result")
    if to is not None:
        network = dsn_models.load(source)
        export_skipnet(network, out)
        told = to
    else:
        network, told, beside = convert(source, model, classes)
        checkpoints.save(network, out, source={"file": source.name, "format": told, **beside})
    config: Any = network.config
    parameters = sum(p.numel() for p in network.parameters())
    facts = {"checkpoint": str(out), "format": told, "model": config.name, "classes": config.classes}
    _report({**facts, "parameters": parameters}, json)
