"""Released weights of other programs to our models, and SkipNets back to their authors' format."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import zoo
from ..checkpoints import write_atomically
from ..errors import UserError
from ..skipnet import SkipNet
from ..torchvision_weights import load_torchvision_densenet121
from . import names
from .formats import DENSENET, FORMATS, Normalisation, normalisation_of, told_format, told_network
from .reading import StateDict, read_released
from .transfer import export, transfer

__all__ = ["FORMATS", "Converted", "Normalisation", "convert", "export_skipnet", "names", "read_released", "transfer"]


class Converted(NamedTuple):
    """A converted network.

    Attributes:
        model: in ``eval()``.
        format: one of :data:`FORMATS`.
        facts: strings and numbers that the file held beside the weights, such as ``best_prec1``.
        normalisation: what the network was trained with, where the code that publishes it tells.
        notes: one line for each part that the file does not train.
    """

    model: nn.Module
    format: str
    facts: dict[str, Any]
    normalisation: Normalisation | None = None
    notes: tuple[str, ...] = ()


def convert(source: str | Path, model: str | None = None, classes: int | None = None) -> Converted:
    """The network of a released file; its format is told from the keys, its shape from the tensors.

    - ``skipnet``: the SkipNet authors' files, with recurrent or feed-forward gates, the projection's second name
      (``group2_ds0``) or not, counters of batch norms or none, ``control.proj`` a linear layer or a 1x1 convolution;
      ``skipnet-resnet``: the same names without gates.
    - ``cifar-resnet``, ``-shortcut`` and ``-fc``: residual networks with a 3x3 stem, of any depth, width and number of
      stages, in the three common namings: ``linear`` with padded or projected (``shortcut``) shortcuts, ``fc`` with
      ``downsample``.
    - ``torchvision-resnet``: ResNet-18/34/50/101/152; ``torchvision-densenet121``.

    Image channels and classes are the file's. The same file gives the same bits each time, what it does not train
    (see ``notes``) included.

    Args:
        source: the file; see :func:`read_released`.
        model: zoo name of a network of the format, checked against the keys; told from them if not given.
        classes: class count that is expected; the file's own if not given.

    Raises:
        UserError: the file cannot be read safely, its format is unknown, a key is missing or unexpected, a shape does
            not fit, or the class count is another.
    """
    state, facts = read_released(source)
    told = told_format(state)
    if told == DENSENET:
        return _convert_densenet(state, facts, model, classes)
    found = told_network(state, told, model)
    config = found.config
    _check_classes(config.classes, classes)
    network = _fresh("skipnet" if told == "skipnet" else "resnet", dataclasses.asdict(config))
    transfer(network, state, found.names, config.name)
    return Converted(network.eval(), told, facts, normalisation_of(told, config, config.classes))


def _fresh(family: str, fields: dict[str, Any]) -> nn.Module:
    """A model whose initial weights are the same each time; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return zoo.build(family, fields)


def _check_classes(given: int, classes: int | None) -> None:
    if classes is not None and classes != given:
        raise UserError(
            f"the weights are of {given} classes, {classes} were asked for; leave the class count out, and train for "
            "others with the result as init"
        )


def _convert_densenet(state: StateDict, facts: dict[str, Any], model: str | None, classes: int | None) -> Converted:
    name = model or "densenet-121"
    if "classifier.weight" not in state:
        raise UserError("key 'classifier.weight' is missing; expected torchvision's complete DenseNet-121 state dict")
    count = state["classifier.weight"].shape[0]
    if name not in ("densenet-121", "dsn-121"):
        raise UserError(f"model is {name!r}; a {DENSENET} file is for densenet-121 or dsn-121")
    _check_classes(count, classes)
    stem = state["features.conv0.weight"]
    changes = {"in_channels": stem.shape[1]} if stem.dim() == 4 else {}
    if name == "densenet-121":
        changes["classes"] = count
    family, fields = zoo.configuration(name)
    network: Any = _fresh(family, {**fields, **changes})
    notes = load_torchvision_densenet121(network, state)
    gates = sum(getattr(network, "gate_counts", {}).values())
    if gates:
        notes.append(f"{gates} gates left at their initial values")
    return Converted(network.eval(), DENSENET, facts, normalisation_of(DENSENET, network.config, count), tuple(notes))


def export_skipnet(model: nn.Module, path: str | Path) -> Path:
    """Writes a SkipNet in its authors' format: ``{"state_dict": {"module.conv1.weight": ...}, "arch": name}``.

    ``control.proj`` is a linear layer in CIFAR networks, a 1x1 convolution in ImageNet's; no counters.

    Raises:
        UserError: the model is no SkipNet, the name is that of another format, or the file cannot be written.
    """
    if not isinstance(model, SkipNet):
        raise UserError(f"model is a {type(model).__name__}; only a SkipNet has the authors' format")
    if Path(path).suffix == ".safetensors":
        raise UserError(f"{path} would be a file of torch.save, which is the authors' format; name it .pth")
    state = export(model, names.released_skipnet(model.config))
    for key, tensor in state.items():
        embedding = re.fullmatch(r"group\d+_gate\d+\.(1|linear_layer)\.weight", key)
        if embedding or key == "control.proj.weight" and model.config.stem == "imagenet":
            state[key] = tensor[:, :, None, None]
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "arch": model.config.name}, buffer)
    write_atomically(Path(path), buffer.getvalue())
    return Path(path)
