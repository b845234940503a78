"""``dsn convert``: released weights to our checkpoints, and SkipNets back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import dsn_models
from dsn_models import UserError, checkpoints
from dsn_models.convert import FORMATS, Normalisation, convert, export_skipnet
from dsn_models.data.base import check_normalisation
from dsn_models.data.cifar import CIFAR10_NAMES

from .common import MANY, JsonOption, check_writable, console, split, write_json


def _report(facts: dict[str, Any], json: str | None) -> None:
    if json is not None:
        write_json({"schema": 1, **facts}, json)
        return
    table = Table(show_header=False)
    for key, value in facts.items():
        for line in value if isinstance(value, list) else [value]:
            told = f"{line:,}" if isinstance(line, int) else str(line)
            table.add_row(key, f"{told}: {FORMATS[told]}" if key == "format" else told)
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
    mean: Annotated[
        str | None, typer.Option(metavar="M,M,M", help="What images are normalised by; if not given, what is known.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="S,S,S", help="Likewise; given with --mean.")] = None,
    to: Annotated[
        str | None, typer.Option(metavar="skipnet", help="From a checkpoint of ours to its authors' format.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Convert released weights to a checkpoint; the file is read without running code from it."""
    out = out or Path(source.stem + (".safetensors" if to is None else ".pth"))
    if to is not None:
        if to != "skipnet":
            raise UserError(f"--to is {to!r}; only 'skipnet' can be written")
        if any(option is not None for option in (model, classes, mean, std)):
            raise UserError(
                "--model, --classes, --mean and --std are for reading released weights; leave them out with --to"
            )
    given = given_normalisation(mean, std)
    check_writable(out)
    check_writable(json, weights=False)
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"{out} is the file to convert; choose another name for the result")
    facts: dict[str, Any] = {"checkpoint": str(out)}
    network: Any
    if to is not None:
        network = dsn_models.load(source)
        export_skipnet(network, out)
        facts |= _told(network, to)
    else:
        found = convert(source, model, classes)
        network, known = found.model, given or found.normalisation
        facts |= _told(network, found.format)
        data = {}
        if known is not None:
            check_normalisation(known.mean, known.std, network.config.in_channels)
            data = {"mean": [*known.mean], "std": [*known.std], **_published(known, network.config)}
            facts["normalisation"] = f"mean {_numbers(known.mean)}, std {_numbers(known.std)} ({known.source})"
        else:
            facts["normalisation"] = "not known; give it by --mean and --std"
        origin = {**found.facts, "file": source.name, "format": found.format, "untrained": [*found.notes]}
        checkpoints.save(network, out, source=origin, data=data)
        facts["untrained"] = [*found.notes]
    _report(facts, json)


def _published(known: Normalisation, config: Any) -> dict[str, Any]:
    """What else is known of the images of published networks: CIFAR-10's classes, how ImageNet's are cut out."""
    if config.classes == 10 and "CIFAR-10" in known.source:
        return {"classes": {"fine": [*CIFAR10_NAMES["fine"]]}}
    return {"resize": 256} if config.classes == 1000 and config.image_size == 224 else {}


def _told(network: Any, format: str) -> dict[str, Any]:
    config = network.config
    parameters = sum(p.numel() for p in network.parameters())
    return {"format": format, "model": config.name, "classes": config.classes, "parameters": parameters}


def given_normalisation(mean: str | None, std: str | None) -> Normalisation | None:
    """The normalisation that a user gives.

    Raises:
        UserError: one of both is missing or no list of numbers.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UserError(f"{'--std' if std is None else '--mean'} is missing; --mean and --std go together")
    return Normalisation(_parsed("--mean", mean), _parsed("--std", std), "as given")


def _parsed(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, split(text)))
    except ValueError:
        raise UserError(f"{name} is {text!r}; expected a number for each channel, such as 0.485,0.456,0.406") from None


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
