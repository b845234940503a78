"""Their key -> our key, for each released format of residual networks and SkipNets."""

from __future__ import annotations

from collections.abc import Callable

from ..resnet import ResNetConfig
from ..skipnet import SkipNetConfig

_NORM = ("weight", "bias", "running_mean", "running_var")


def _norm(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in _NORM}


def _linear(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in ("weight", "bias")}


def _residual_network(config: ResNetConfig, unit: Callable[[int, int], str], shortcuts: Callable[[int], list[str]],
                      classifier: str) -> dict[str, str]:  # fmt: skip
    """Keys of stem, units and head. ``unit(stage, i)``: a unit's key; ``shortcuts(stage)``: its projection's."""
    conv, norm = ("stem.conv", "stem.norm") if config.stem == "imagenet" else ("stem.0", "stem.1")
    names = {"conv1.weight": f"{conv}.weight", **_norm("bn1", norm)}
    index, channels = 0, config.stem_width
    for stage, (count, width) in enumerate(zip(config.stage_units, config.stage_widths, strict=True)):
        for i in range(count):
            theirs, ours = unit(stage, i), f"units.{index}"
            for n in (1, 2) if config.unit == "basic" else (1, 2, 3):
                names[f"{theirs}.conv{n}.weight"] = f"{ours}.conv{n}.weight"
                names |= _norm(f"{theirs}.bn{n}", f"{ours}.norm{n}")
            changes_shape = i == 0 and (stage > 0 or channels != width)
            if changes_shape and config.shortcut == "projection":
                for shortcut in shortcuts(stage):
                    names[f"{shortcut}.0.weight"] = f"{ours}.shortcut.0.weight"
                    names |= _norm(f"{shortcut}.1", f"{ours}.shortcut.1")
            index, channels = index + 1, width
    return names | _linear(classifier, "head.2")


def layered_resnet(config: ResNetConfig, classifier: str, shortcut: str) -> dict[str, str]:
    """ResNets with ``layer1.0.conv1.weight``, ``layer2.0.SHORTCUT.0.weight`` if projected, ``CLASSIFIER.weight``."""
    return _residual_network(
        config, lambda s, i: f"layer{s + 1}.{i}", lambda s: [f"layer{s + 1}.0.{shortcut}"], classifier
    )


def cifar_resnet(config: ResNetConfig) -> dict[str, str]:
    """CIFAR ResNets with ``layer1.0.conv1.weight``, ``layer2.0.shortcut.0.weight`` if projected, ``linear.weight``."""
    return layered_resnet(config, "linear", "shortcut")


def torchvision_resnet(config: ResNetConfig) -> dict[str, str]:
    """torchvision's ResNets: ``layer1.0.conv1.weight``, ``layer2.0.downsample.0.weight``, ``fc.weight``."""
    return layered_resnet(config, "fc", "downsample")


def grouped_resnet(config: ResNetConfig) -> dict[str, str]:
    """The SkipNet authors' keys without gates; ``group2_ds0.*`` is a second name of ``group2_layer0.downsample.*``."""
    return _residual_network(
        config,
        lambda s, i: f"group{s + 1}_layer{i}",
        lambda s: [f"group{s + 1}_layer0.downsample", f"group{s + 1}_ds0"],
        "fc",
    )


def released_skipnet(config: SkipNetConfig) -> dict[str, str]:
    """The SkipNet authors' keys: 249 / 465 / 681 of SkipNet-38 / 74 / 110, 325 / 614 of ImageNet's 50 / 101."""
    names = grouped_resnet(config)
    keys = [f"group{s + 1}_gate{i}" for s, count in enumerate(config.stage_units) for i in range(count)]
    for index, theirs in enumerate(keys):
        ours = f"gates.{index}"
        if config.gate == "rnn":
            names |= _linear(f"{theirs}.1", ours)
            continue
        for n in (1, 2) if config.gate == "ff-1" else (1,):
            names[f"{theirs}.conv{n}.weight"] = f"{ours}.conv{n}.weight"
            names |= _norm(f"{theirs}.bn{n}", f"{ours}.norm{n}")
        names |= _linear(f"{theirs}.linear_layer", f"{ours}.linear")
    if config.gate == "rnn":
        for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            names[f"control.rnn.{leaf}_l0"] = f"control.rnn.{leaf}"
        names |= _linear("control.proj", "control.proj")
    return names
