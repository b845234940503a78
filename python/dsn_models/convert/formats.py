"""The released formats of residual networks: which one the keys are of, and what network their shapes are."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

from .. import resnet, skipnet
from ..errors import UserError
from ..resnet import ResNetConfig
from ..skipnet import SkipNetConfig
from . import names
from .reading import StateDict

DENSENET = "torchvision-densenet121"
#: Names of the formats and what they are.
FORMATS = {
    "skipnet": "the SkipNet authors' SkipNets",
    "skipnet-resnet": "the SkipNet authors' names, without gates",
    "cifar-resnet": "CIFAR ResNets, 'linear', shortcuts padded (option A)",
    "cifar-resnet-shortcut": "CIFAR ResNets, 'linear', shortcuts projected ('shortcut')",
    "cifar-resnet-fc": "CIFAR ResNets, 'fc', as torchvision names theirs",
    "torchvision-resnet": "torchvision's ResNets",
    DENSENET: "torchvision's DenseNet-121",
}
_GROUPED = re.compile(r"group(\d+)_layer(\d+)\.")
_LAYERED = re.compile(r"layer(\d+)\.(\d+)\.")
_PROJECTION = re.compile(r"(downsample|shortcut|_ds\d+)\.0\.weight$")


class Residual(NamedTuple):
    """A residual network that was told from its keys.

    Attributes:
        format: one of :data:`FORMATS`.
        config: the network.
        names: their key -> our key.
    """

    format: str
    config: ResNetConfig
    names: dict[str, str]


def told_format(state: StateDict) -> str:
    """The format that the keys are of.

    Raises:
        UserError: none that is known.
    """
    if any(key.startswith("group1_") for key in state):
        gated = any(re.match(r"group\d+_gate\d+\.", key) for key in state)
        return "skipnet" if gated else "skipnet-resnet"
    if any(key.startswith("layer1.") for key in state):
        if any(key.startswith("linear.") for key in state):
            projected = any(_PROJECTION.search(key) for key in state)
            return "cifar-resnet-shortcut" if projected else "cifar-resnet"
        stem = state.get("conv1.weight")
        return "cifar-resnet-fc" if stem is not None and stem.shape[-1] == 3 else "torchvision-resnet"
    if "features.conv0.weight" in state:
        return DENSENET
    first = next(iter(state))
    raise UserError(f"weights begin with the key {first!r}, which no known format has; expected {', '.join(FORMATS)}")


def told_network(state: StateDict, told: str, model: str | None) -> Residual:
    """The network of a format's keys.

    Args:
        state: weights.
        told: their format, of residual networks.
        model: zoo name that is expected; the keys' own if not given.

    Raises:
        UserError: the network is another than ``model``, or the keys do not tell one.
    """
    grouped = told.startswith("skipnet")
    classifier = "linear" if told in ("cifar-resnet", "cifar-resnet-shortcut") else "fc"
    pattern = _GROUPED if grouped else _LAYERED
    for key in ("conv1.weight", f"{classifier}.weight"):
        if key not in state:
            raise UserError(f"key {key!r} is missing; expected all tensors of a {told} file")
        if state[key].dim() != (4 if key == "conv1.weight" else 2):
            raise UserError(f"tensor {key!r} has shape {list(state[key].shape)}; expected that of a {told} file")
    config = _infer(state, told, classifier, pattern)
    if model is not None and model != config.name:
        config = _named(model, config, told)
    if told == "skipnet":
        assert isinstance(config, SkipNetConfig)
        return Residual(told, config, names.released_skipnet(config))
    if grouped:
        return Residual(told, config, names.grouped_resnet(config))
    shortcut = next((s for s in ("downsample", "shortcut") if any(f".{s}." in key for key in state)), "shortcut")
    return Residual(told, config, names.layered_resnet(config, classifier, shortcut))


def _infer(state: StateDict, told: str, classifier: str, pattern: re.Pattern[str]) -> ResNetConfig:
    """The configuration whose units, widths, gates and shortcuts the keys and shapes tell."""
    last: dict[int, int] = {}
    outputs: dict[int, int] = {}
    units = [match for match in map(pattern.match, state) if match]
    bottleneck = any(f"{match[0]}conv3.weight" in state for match in units)
    for match in units:
        stage, index = int(match[1]), int(match[2])
        last[stage] = max(last.get(stage, 0), index)
        tensor = state.get(f"{match[0]}conv{3 if bottleneck else 2}.weight")
        if tensor is not None and tensor.dim() == 4:
            outputs.setdefault(stage, tensor.shape[0])
    stages = sorted(last)
    # A unit has several tensors: a number beyond theirs is a gap, of which a network is not built to look into it.
    if not stages or sorted(outputs) != stages or sum(last.values()) > len(state):
        raise UserError(f"convolutions of units are missing; expected all tensors of a {told} file")
    width, channels, *kernel = state["conv1.weight"].shape
    if kernel not in ([3, 3], [7, 7]):
        raise UserError(f"tensor 'conv1.weight' is a convolution of {kernel}; expected 3 x 3 or 7 x 7")
    imagenet = kernel == [7, 7]
    fields: dict[str, Any] = {
        "stage_units": tuple(last[stage] + 1 for stage in stages),
        "stage_widths": tuple(outputs[stage] for stage in stages),
        "stem_width": width,
        "unit": "bottleneck" if bottleneck else "basic",
        "stem": "imagenet" if imagenet else "conv3x3",
    }
    kind: type[ResNetConfig] = ResNetConfig
    if told == "skipnet":
        kind = SkipNetConfig
        feed_forward = "ff-1" if "group1_gate0.conv2.weight" in state else "ff-2"
        fields["gate"] = feed_forward if "group1_gate0.conv1.weight" in state else "rnn"
    name = _name(fields)
    projected = any(_PROJECTION.search(key) for key in state)
    return kind(
        name,
        **fields,
        classes=state[f"{classifier}.weight"].shape[0],
        in_channels=channels,
        image_size=224 if imagenet else 32,
        shortcut="projection" if projected else "pad",
    )


def _known(gated: bool) -> list[Any]:
    entries = skipnet.ZOO if gated else resnet.ZOO
    return [config for config, _ in entries if config.unit != "preact"]


def _name(fields: dict[str, Any]) -> str:
    """That of the zoo, or one made of depth, gates and stem."""
    known = _known("gate" in fields)
    for config in known:
        if all(getattr(config, field) == value for field, value in fields.items()):
            return config.name
    depth = (3 if fields["unit"] == "bottleneck" else 2) * sum(fields["stage_units"]) + 2
    name = f"resnet-{depth}"
    if "gate" in fields:
        gate = "rnn" if fields["gate"] == "rnn" else "ff"
        name = f"skipnet-{depth}-{gate}" + ("-imagenet" if fields["stem"] == "imagenet" else "")
    # Another network of the zoo may have that name, as ResNet-18 of ImageNet has.
    return f"{name}-{fields['stem']}" if any(config.name == name for config in known) else name


def _named(model: str, told_config: ResNetConfig, told: str) -> ResNetConfig:
    """The zoo's network, whose keys are looked for then."""
    known = [c for c in _known(told == "skipnet") if told == "skipnet" or c.stem == told_config.stem]
    for config in known:
        if config.name == model:
            changes = ("classes", "in_channels", "shortcut")
            return dataclasses.replace(config, **{field: getattr(told_config, field) for field in changes})
    listed = ", ".join(config.name for config in known)
    raise UserError(f"model is {model!r}; a {told} file is for one of {listed}, this one for {told_config.name}")


class Normalisation(NamedTuple):
    """Mean and standard deviation by channel, of pixels in [0, 1], and whose code has them: files of weights do not."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100 = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
_SKIPNET_DEPTHS = (38, 74, 110, 152)  # of the authors' dense CIFAR networks, which are named as torchvision's are
_PUBLISHED_DEPTHS = (20, 32, 44, 56)  # of those that are published for CIFAR-10 and CIFAR-100 under such names


def normalisation_of(told: str, config: Any, classes: int) -> Normalisation | None:
    """What networks of a format are trained with in the code that publishes them; None where that is not known."""
    if config.in_channels != 3:
        return None
    if told.startswith("torchvision") or getattr(config, "stem", None) == "imagenet":
        return Normalisation(*_IMAGENET, "ImageNet's, of torchvision's weights") if classes == 1000 else None
    if classes not in (10, 100):
        return None
    stages, depth = len(config.stage_units), 2 * sum(config.stage_units) + 2
    if told == "cifar-resnet" and (classes, stages) == (10, 3):
        return Normalisation(*_IMAGENET, "ImageNet's, of the published CIFAR-10 ResNets with 'linear' and option A")
    if told == "cifar-resnet-shortcut" and (classes, stages) == (10, 4):
        return Normalisation(*_CIFAR10, "CIFAR-10's, of the published ResNets with 'linear' and 'shortcut'")
    if told.startswith("skipnet") or told == "cifar-resnet-fc" and stages == 3 and depth in _SKIPNET_DEPTHS:
        return Normalisation(*_CIFAR10, "CIFAR-10's, of the SkipNet authors' networks")
    if told == "cifar-resnet-fc" and stages == 3 and depth in _PUBLISHED_DEPTHS:
        values = _CIFAR10 if classes == 10 else _CIFAR100
        return Normalisation(*values, f"CIFAR-{classes}'s, of the published ResNets with 'fc'")
    return None
