"""Released weights of other programs to our models, and SkipNets back to their authors' format."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import resnet, skipnet, zoo
from ..checkpoints import write_atomically
from ..errors import UserError
from ..resnet import ResNetConfig
from ..skipnet import SkipNet
from ..torchvision_weights import load_torchvision_densenet121
from . import names
from .transfer import StateDict, export, read_released, transfer

__all__ = ["FORMATS", "Converted", "convert", "export_skipnet", "names", "read_released", "transfer"]


class Converted(NamedTuple):
    """A converted network.

    Attributes:
        model: in ``eval()``.
        format: one of :data:`FORMATS`.
        facts: strings and numbers that the file held beside the weights, such as ``best_prec1``.
    """

    model: nn.Module
    format: str
    facts: dict[str, Any]


class _Format(NamedTuple):
    """How a format of residual networks is told and read.

    Attributes:
        told_by: what a key of the format begins with, and none of the formats before it.
        unit: the key of a unit, with groups for stage (from 1) and index.
        classifier: key of the classifier's weight.
        configs: the networks that it is for.
        names: their key -> our key, of a configuration.
    """

    told_by: str
    unit: re.Pattern[str]
    classifier: str
    configs: list[Any]
    names: Callable[[Any], dict[str, str]]


def _configs(entries: Any, stem: str | None = None) -> list[Any]:
    return [config for config, _ in entries if config.unit != "preact" and stem in (None, config.stem)]


_LAYER = re.compile(r"layer(\d+)\.(\d+)\.")
_RESIDUAL = {
    "skipnet": _Format("group1_", re.compile(r"group(\d+)_layer(\d+)\."), "fc.weight",
                       _configs(skipnet.ZOO), names.released_skipnet),
    "cifar-resnet": _Format("linear.", _LAYER, "linear.weight",
                            _configs(resnet.ZOO, "conv3x3"), names.cifar_resnet),
    "torchvision-resnet": _Format("layer1.", _LAYER, "fc.weight",
                                  _configs(resnet.ZOO, "imagenet"), names.torchvision_resnet),
}  # fmt: skip
_DENSENET = "torchvision-densenet121"
FORMATS = (*_RESIDUAL, _DENSENET)


def _told_format(state: StateDict) -> str:
    for name, form in _RESIDUAL.items():
        if any(key.startswith(form.told_by) for key in state):
            return name
    if "features.conv0.weight" in state:
        return _DENSENET
    raise UserError(
        f"weights begin with the key {next(iter(state))!r}, which no known format has; expected {', '.join(FORMATS)}"
    )


def _stage_units(state: StateDict, unit: re.Pattern[str]) -> tuple[int, ...]:
    last: dict[int, int] = {}
    for key in state:
        if match := unit.match(key):
            stage, index = int(match[1]), int(match[2])
            last[stage] = max(last.get(stage, 0), index)
    return tuple(last[stage] + 1 for stage in sorted(last))


def _infer(state: StateDict, form: _Format, told: str) -> ResNetConfig:
    """The configuration whose units, gates and shortcuts the keys tell."""
    wanted: dict[str, Any] = {
        "stage_units": _stage_units(state, form.unit),
        "unit": "bottleneck"
        if any(form.unit.match(key) and key.endswith(".conv3.weight") for key in state)
        else "basic",
        "stem": "imagenet" if state["conv1.weight"].shape[-1] == 7 else "conv3x3",
    }
    if told == "skipnet":
        feed_forward = "ff-1" if "group1_gate0.conv2.weight" in state else "ff-2"
        wanted["gate"] = feed_forward if "group1_gate0.conv1.weight" in state else "rnn"
    fitting = [c for c in form.configs if all(getattr(c, field) == value for field, value in wanted.items())]
    if not fitting:
        known = ", ".join(config.name for config in form.configs)
        raise UserError(
            f"units per stage are {wanted['stage_units']} ({wanted['unit']}), of none of {known}; name a model"
        )
    projected = any(re.search(r"(downsample|shortcut|_ds\d+)\.0\.weight$", key) for key in state)
    return dataclasses.replace(fitting[0], shortcut="projection" if projected else "pad")


def _check_classes(config: Any, given: int, classes: int | None) -> None:
    if classes is not None and classes != given:
        raise UserError(f"the weights are of {given} classes, {classes} were asked for; leave the class count out")


def convert(source: str | Path, model: str | None = None, classes: int | None = None) -> Converted:
    """The network of a released file; its format is told from the keys.

    - ``skipnet``: the SkipNet authors' files, with recurrent or feed-forward gates, a ``module.`` prefix or none, the
      projection's second name (``group2_ds0``) or not, counters of batch norms or none, ``control.proj`` a linear layer
      or a 1x1 convolution.
    - ``cifar-resnet``: ``layer1.0.conv1.weight`` ... ``linear.weight``, shortcuts padded (option A) or projected.
    - ``torchvision-resnet``: ResNet-18/34/50/101/152; ``torchvision-densenet121``.

    Args:
        source: the file; see :func:`read_released`.
        model: zoo name of a network of the format, checked against the keys; told from them if not given.
        classes: class count that is expected; the file's own if not given.

    Raises:
        UserError: the file cannot be read safely, its format is unknown, a key is missing or unexpected, a shape does
            not fit, or the class count is another.
    """
    state, facts = read_released(source)
    told = _told_format(state)
    if told == _DENSENET:
        return Converted(_convert_densenet(state, model, classes).eval(), told, facts)
    form = _RESIDUAL[told]
    for key in ("conv1.weight", form.classifier):
        if key not in state:
            raise UserError(f"key {key!r} is missing; expected all tensors of a {told} file")
    config = _infer(state, form, told) if model is None else _named(model, form, told)
    count = state[form.classifier].shape[0]
    _check_classes(config, count, classes)
    config = dataclasses.replace(config, classes=count)
    network = zoo.build("skipnet" if told == "skipnet" else "resnet", dataclasses.asdict(config))
    transfer(network, state, form.names(config), config.name)
    return Converted(network.eval(), told, facts)


def _named(model: str, form: _Format, told: str) -> ResNetConfig:
    for config in form.configs:
        if config.name == model:
            return config
    known = ", ".join(config.name for config in form.configs)
    raise UserError(f"model is {model!r}; a {told} file is for one of {known}")


def _convert_densenet(state: StateDict, model: str | None, classes: int | None) -> nn.Module:
    name = model or "densenet-121"
    if "classifier.weight" not in state:
        raise UserError("key 'classifier.weight' is missing; expected torchvision's complete DenseNet-121 state dict")
    count = state["classifier.weight"].shape[0]
    if name not in ("densenet-121", "dsn-121"):
        raise UserError(f"model is {name!r}; a {_DENSENET} file is for densenet-121 or dsn-121")
    _check_classes(None, count, classes if name == "densenet-121" else None)
    network = zoo.create(name, classes=count) if name == "densenet-121" else zoo.create(name)
    load_torchvision_densenet121(network, state)
    return network


def export_skipnet(model: nn.Module, path: str | Path) -> Path:
    """Writes a SkipNet in its authors' format: ``{"state_dict": {"module.conv1.weight": ...}, "arch": name}``.

    ``control.proj`` is a linear layer in CIFAR networks, a 1x1 convolution in ImageNet's; no counters.

    Raises:
        UserError: the model is no SkipNet, or the file cannot be written.
    """
    if not isinstance(model, SkipNet):
        raise UserError(f"model is a {type(model).__name__}; only a SkipNet has the authors' format")
    state = export(model, names.released_skipnet(model.config))
    for key, tensor in state.items():
        embedding = re.fullmatch(r"group\d+_gate\d+\.(1|linear_layer)\.weight", key)
        if embedding or key == "control.proj.weight" and model.config.stem == "imagenet":
            state[key] = tensor[:, :, None, None]
    buffer = io.BytesIO()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "arch": model.config.name}, buffer)
    write_atomically(Path(path), buffer.getvalue())
    return Path(path)
