"""Names and builders of the models: ``create("concat-bc-100", classes=(20, 100))``."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from .densenet import DenseNet, DenseNetConfig
from .dual_skipping import DualSkippingConfig, DualSkippingNetwork
from .errors import UserError
from .lenet import LeNet, LeNetConfig
from .resnet import ResNet, ResNetConfig

# A checkpoint names the family; the family says which configuration and module to build.
FAMILIES: dict[str, tuple[type, type[nn.Module]]] = {
    "dual_skipping": (DualSkippingConfig, DualSkippingNetwork),
    "densenet": (DenseNetConfig, DenseNet),
    "resnet": (ResNetConfig, ResNet),
    "lenet": (LeNetConfig, LeNet),
}

_CONFIGS: tuple[Any, ...] = (
    DualSkippingConfig(
        "dsn-navon", 6, (3, 3, 3, 3), bottleneck=False, guide=False, classes=(10, 10), in_channels=1, image_size=64
    ),
    DualSkippingConfig("concat-40", 12, (12, 12, 12), bottleneck=False),
    DualSkippingConfig("concat-bc-100", 12, (16, 16, 16), bottleneck=True, compression=0.5),
    DualSkippingConfig(
        "add-166", 32, (18, 18, 18), bottleneck=True, merge="add", stage_widths=(64, 128, 256)
    ),
    DualSkippingConfig(
        "dsn-121", 32, (6, 12, 24, 16), bottleneck=True, compression=0.5, classes=(39, 200), image_size=224,
        stem="imagenet",
    ),
    LeNetConfig("lenet", 10),
    DenseNetConfig("densenet-40", 12, (12, 12, 12), False, 1.0, 100),
    DenseNetConfig("densenet-bc-100", 12, (16, 16, 16), True, 0.5, 100),
    DenseNetConfig("densenet-121", 32, (6, 12, 24, 16), True, 0.5, 1000, image_size=224, stem="imagenet"),
    ResNetConfig("resnet-18", (2, 2, 2, 2), (64, 128, 256, 512), 64, "basic", 1000, image_size=224, stem="imagenet"),
    ResNetConfig("resnet-34", (3, 4, 6, 3), (64, 128, 256, 512), 64, "basic", 1000, image_size=224, stem="imagenet"),
    *(
        ResNetConfig(
            f"resnet-{depth}", units, (256, 512, 1024, 2048), 64, "bottleneck", 1000, image_size=224, stem="imagenet"
        )
        for depth, units in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3)))
    ),
    *(
        ResNetConfig(f"resnet-{6 * n + 2}", (n, n, n), (16, 32, 64), 16, "basic", 10, shortcut="pad")
        for n in (3, 5, 6, 9, 12, 18)
    ),
    ResNetConfig("resnet-164", (18, 18, 18), (64, 128, 256), 16, "preact", 100),
    ResNetConfig("resnet-164-narrow", (18, 18, 18), (16, 128, 256), 16, "preact", 10),
)  # fmt: skip
_ZOO = {config.name: config for config in _CONFIGS}


def names() -> list[str]:
    """The names that :func:`create` knows."""
    return list(_ZOO)


def family_of(model: nn.Module) -> str:
    """The family name under which a checkpoint stores ``model``.

    Raises:
        UserError: the model is none of ours.
    """
    for family, (_, module) in FAMILIES.items():
        if type(model) is module:
            return family
    raise UserError(f"model is a {type(model).__name__}; expected one made by dsn_models.create or dsn_models.load")


def build(family: str, fields: dict[str, Any]) -> nn.Module:
    """A model of ``family`` from its configuration's fields; lists stand for tuples.

    Raises:
        UserError: the family, a field or a value is unknown.
    """
    if family not in FAMILIES:
        raise UserError(f"model family is {family!r}; expected one of {', '.join(FAMILIES)}")
    config_type, module = FAMILIES[family]
    known = [field.name for field in dataclasses.fields(config_type)]
    for key in fields:
        if key not in known:
            raise UserError(f"unknown option {key!r}; expected one of {', '.join(known)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    try:
        return module(config_type(**values))
    except TypeError as error:
        raise UserError(f"configuration of a {family} model does not fit: {error}") from error


def create(name: str, *, classes: int | tuple[int, int] | None = None, **overrides: Any) -> nn.Module:
    """A freshly initialised model.

    Args:
        name: one of :func:`names`.
        classes: class count of a baseline, (coarse, fine) of a dual skipping network; the zoo's own if not given.
        overrides: other fields of the configuration, such as ``image_size``, ``gate`` or ``block_layers``.

    Raises:
        UserError: the name, an option or a value is unknown.
    """
    if name not in _ZOO:
        raise UserError(f"unknown model {name!r}; expected one of {', '.join(_ZOO)}")
    config = _ZOO[name]
    family = next(f for f, (config_type, _) in FAMILIES.items() if type(config) is config_type)
    if classes is not None:
        pair = family == "dual_skipping"
        if pair != isinstance(classes, (tuple, list)):
            raise UserError(f"classes is {classes!r}; {name} takes {'(coarse, fine)' if pair else 'one number'}")
        overrides["classes"] = classes
    return build(family, {**dataclasses.asdict(config), **overrides})
