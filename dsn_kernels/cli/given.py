"""The network that ``dsn gate`` is given: by its constructor, or by what its file tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

import dsn_models
from dsn_models import UserError, checkpoints
from dsn_models.constructors import ZOO, ConstructedConfig, construct, put_weights, zoo_options
from dsn_models.convert import FORMATS, Normalisation, convert, read_released

from .inputs import import_from_here


class Given(NamedTuple):
    """A trained network.

    Attributes:
        network: with its weights.
        arch: its constructor, which ``options`` are the arguments of.
        normalisation: of its images, where the file, or the code that publishes it, tells.
        image_size: of its images, in pixels, where the file tells.
        told: a line on what the file was recognised as; empty where a constructor was named.
    """

    network: nn.Module
    arch: str
    options: dict[str, Any]
    normalisation: Normalisation | None = None
    image_size: int | None = None
    told: str = ""


def given_network(weights: Path, arch: str | None, options: Mapping[str, Any]) -> Given:
    """What ``arch`` constructs, with the weights of a file; else the network that a checkpoint of ours or released
    weights hold, which is one of the zoo's.

    Raises:
        UserError: the file is damaged, does not fit, is of no known network and no constructor is named, or holds a
            network with gates; or options are given to a network that has its own.
    """
    family = checkpoints.read_family(weights)
    if arch is not None and family is None:
        import_from_here()
        network = construct(arch, options)
        put_weights(network, read_released(weights)[0], arch, str(weights))
        return Given(network, arch, dict(options))
    if arch is not None:
        raise UserError(f"{weights} is a checkpoint of ours and tells what constructs its network; leave --arch out")
    if options:
        raise UserError(f"--option is for the constructor of --arch; {weights} tells its network, leave it out")
    return _released(weights) if family is None else _of_ours(weights, family)


def _of_ours(weights: Path, family: str) -> Given:
    if family == ConstructedConfig.family:
        raise UserError(
            f"{weights} was made to skip by dsn gate already; give the file it was made of, with --target for another "
            "share, or move its gates: dsn sweep CKPT --budget macs=0.6"
        )
    network: Any = dsn_models.load(weights)
    made = network.preprocess
    known = None if made is None else Normalisation(made.mean, made.std, "as the checkpoint says")
    return _of_zoo(network, known, f"{weights}: {network.config.name} of {network.config.classes} classes")


def _released(weights: Path) -> Given:
    read_released(weights)  # a damaged file is told as such
    try:
        found = convert(weights)
    except UserError as error:
        raise UserError(
            f"{weights}: {error}; or name what constructs its network: --arch PKG.MODULE:FUNCTION"
        ) from error
    config: Any = found.model.config
    told = f"{weights}: {config.name} of {config.classes} classes, by its keys ({FORMATS[found.format]})"
    return _of_zoo(found.model, found.normalisation, told)


def _of_zoo(network: Any, known: Normalisation | None, told: str) -> Given:
    return Given(network, ZOO, zoo_options(network), known, network.config.image_size, told)
