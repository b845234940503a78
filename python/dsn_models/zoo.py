"""Names and builders of the models: ``create("concat-bc-100", classes=(20, 100))``.

A family is one file with a configuration, a module and ``ZOO``, its pairs of configuration and data set. It joins by
one line in :data:`FAMILIES`.
"""

from __future__ import annotations

import builtins
import dataclasses
import reprlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_origin, get_type_hints

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from . import (
    adaptive_time,
    densenet,
    dual_skipping,
    gaternet,
    gradually_updated,
    inception,
    layer_skippable,
    lenet,
    resnet,
    shake_shake,
    skipnet,
)
from .errors import UserError, expected

Configuration = TypeVar("Configuration")


class Family(NamedTuple):
    """A checkpoint names its family; the family says which configuration and module to build.

    Attributes:
        config: the dataclass of the configuration; it has ``name``, ``classes``, ``in_channels`` and ``image_size``.
        module: built from a configuration.
        paper: short reference.
        zoo: (configuration, name of the data set) of each zoo model.
    """

    config: type
    module: type[nn.Module]
    paper: str
    zoo: Sequence[tuple[Any, str]]


FAMILIES: dict[str, Family] = {
    "dual_skipping": Family(
        dual_skipping.DualSkippingConfig, dual_skipping.DualSkippingNetwork, "DSN, CVPR 2018", dual_skipping.ZOO
    ),
    "layer_skippable": Family(
        layer_skippable.LayerSkippableConfig,
        layer_skippable.LayerSkippableNetwork,
        "LSN, TIP 2020",
        layer_skippable.ZOO,
    ),
    "gradually_updated": Family(
        gradually_updated.GraduallyUpdatedConfig,
        gradually_updated.GraduallyUpdatedNetwork,
        "GUNN, ICML 2018",
        gradually_updated.ZOO,
    ),
    "densenet": Family(densenet.DenseNetConfig, densenet.DenseNet, "DenseNet, CVPR 2017", densenet.ZOO),
    "resnet": Family(resnet.ResNetConfig, resnet.ResNet, "ResNet, CVPR 2016", resnet.ZOO),
    "skipnet": Family(skipnet.SkipNetConfig, skipnet.SkipNet, "SkipNet, ECCV 2018", skipnet.ZOO),
    "adaptive_time": Family(
        adaptive_time.AdaptiveTimeConfig, adaptive_time.AdaptiveTimeNetwork, "ACT, CVPR 2017", adaptive_time.ZOO
    ),
    "gaternet": Family(gaternet.GaterNetConfig, gaternet.GaterNet, "GaterNet, CVPR 2019", gaternet.ZOO),
    "shake_shake": Family(
        shake_shake.ShakeShakeConfig, shake_shake.ShakeShake, "Shake-Shake, ICLR workshop 2017", shake_shake.ZOO
    ),
    "inception": Family(inception.InceptionConfig, inception.InceptionV4, "Inception-v4, AAAI 2017", inception.ZOO),
    "lenet": Family(lenet.LeNetConfig, lenet.LeNet, "LeNet-5, 1998", lenet.ZOO),
}


class _Entry(NamedTuple):
    family: str
    config: Any
    dataset: str


_ZOO = {
    config.name: _Entry(family, config, dataset)
    for family, parts in FAMILIES.items()
    for config, dataset in parts.zoo
}  # fmt: skip


class Summary(NamedTuple):
    """A zoo model: ``parameters`` in all, ``macs`` (multiply-accumulates) of one image with every gate open."""

    name: str
    paper: str
    dataset: str
    parameters: int
    macs: int


def names() -> builtins.list[str]:
    """The names that :func:`create` knows.

    >>> import dsn_models
    >>> "lenet" in dsn_models.names()
    True
    """
    return [*_ZOO]


def _entry(name: str) -> _Entry:
    if name not in _ZOO:
        raise UserError(f"unknown model {name!r}; {expected(name, _ZOO)} (dsn_models.zoo.list() prints all)")
    return _ZOO[name]


def family_of(model: nn.Module) -> str:
    """The family name under which a checkpoint stores ``model``: of :data:`FAMILIES`, or what its configuration tells.

    Raises:
        UserError: the model is none of ours.
    """
    for family, parts in FAMILIES.items():
        if type(model) is parts.module:
            return family
    told = getattr(getattr(model, "config", None), "family", None)
    if isinstance(told, str):
        return told
    raise UserError(f"model is a {type(model).__name__}; expected one made by dsn_models.create or dsn_models.load")


def build(family: str, fields: dict[str, Any]) -> nn.Module:
    """A model of ``family`` from its configuration's fields; lists stand for tuples.

    Raises:
        UserError: the family, a field or a value is unknown.
    """
    if family not in FAMILIES:
        raise UserError(f"model family is {family!r}; expected one of {', '.join(FAMILIES)}")
    config_type, module = FAMILIES[family].config, FAMILIES[family].module
    config: Any = fields_of(config_type, fields)
    try:
        return module(config)
    except TypeError as error:
        raise UserError(f"configuration of a {family} model does not fit: {error}") from error


def fields_of(config_type: type[Configuration], fields: dict[str, Any]) -> Configuration:
    """A configuration from its fields; lists stand for tuples.

    Raises:
        UserError: a field is unknown or missing, or a value is not of its type.
    """
    known = [field.name for field in dataclasses.fields(cast(Any, config_type))]
    for key in fields:
        if key not in known:
            raise UserError(f"unknown option {key!r}; {expected(key, known)}")
    values = {key: _tuples(value) for key, value in fields.items()}
    _check_types(config_type, values)
    try:
        return config_type(**values)
    except TypeError as error:
        raise UserError(f"a {config_type.__name__} does not fit: {error}") from error


def _tuples(value: Any) -> Any:
    """Lists, and those within, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, (builtins.list, tuple)) else value


def _check_types(config_type: type, values: dict[str, Any]) -> None:
    """Refuses a value that is not of its field's type: NaN, a fraction where a count is due, a word for a number."""
    try:
        from pydantic import ValidationError  # it takes its time to import
    except ModuleNotFoundError:  # where networks are only measured; who brings values of a user's has it
        return

    hints = get_type_hints(config_type)
    for key, value in values.items():
        if get_origin(hints[key]) is Literal:  # the configuration itself names what is allowed
            continue
        try:
            _of_type(hints[key]).validate_python(value, strict=True)
        except ValidationError:
            wanted = getattr(hints[key], "__name__", "") if isinstance(hints[key], type) else ""
            raise UserError(f"option {key} is {reprlib.repr(value)}; expected {wanted or hints[key]}") from None


@cache
def _of_type(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False))


def configuration(name: str) -> tuple[str, dict[str, Any]]:
    """The family of a zoo model and the fields of its configuration, as :func:`build` takes them.

    Raises:
        UserError: the name is unknown.
    """
    entry = _entry(name)
    return entry.family, dataclasses.asdict(entry.config)


def create(name: str, *, classes: int | tuple[int, int] | None = None, **overrides: Any) -> nn.Module:
    """A freshly initialised model.

    Args:
        name: one of :func:`names`.
        classes: class count of a single task, (coarse, fine) of a two-branch network; the zoo's own if not given.
            ``num_classes`` is another word for it.
        overrides: other fields of the configuration, such as ``image_size``, ``gate`` or ``block_layers``.

    Raises:
        UserError: the name, an option or a value is unknown; an unknown name is answered with the near ones.

    >>> import dsn_models
    >>> dsn_models.create("concat-bc-100", classes=(20, 100)).gate_counts
    {'coarse': 48, 'fine': 48}
    """
    entry = _entry(name)
    other = overrides.pop("num_classes", None)
    if classes is not None and other is not None:
        raise UserError(f"classes is {classes!r} and num_classes {other!r}, which mean the same; give one")
    classes = other if classes is None else classes
    if classes is not None:
        pair = isinstance(entry.config.classes, tuple)
        if pair != isinstance(classes, Sequence):
            raise UserError(f"classes is {classes!r}; {name} takes {'(coarse, fine)' if pair else 'one number'}")
        overrides["classes"] = classes
    return build(entry.family, {**dataclasses.asdict(entry.config), **overrides})


def network(family: str, num_classes: int, **fields: Any) -> nn.Module:
    """A freshly initialised model by keywords, as ``dsn gate`` keeps what constructs a network of ours.

    Args:
        family: one of :data:`FAMILIES`.
        num_classes: of its one task.
        fields: the others of its configuration.

    Raises:
        UserError: as :func:`build`.
    """
    return build(family, {**fields, "classes": num_classes})


def summarise(name: str) -> Summary:
    """What :func:`list` prints of one model. It is counted without weights or data, on torch's meta device.

    Raises:
        UserError: the name is unknown.
    """
    entry = _entry(name)
    config = entry.config
    with torch.device("meta"), torch.no_grad():
        model = create(name).eval()
        images = torch.empty(1, config.in_channels, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as counter:
            model(images)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Summary(name, FAMILIES[entry.family].paper, entry.dataset, parameters, counter.get_total_flops() // 2)


def list(pattern: str = "") -> None:
    """Prints name, paper, data set, parameters and MACs of every model whose name contains ``pattern``.

    Parameters are all that the module holds; MACs those of convolutions and linear layers, for one image of the data
    set's size with every gate open.
    """
    from rich.console import Console  # only here: the zoo is part of every import
    from rich.table import Table

    table = Table("name", "paper", "data set")
    table.add_column("parameters", justify="right")
    table.add_column("MACs", justify="right")
    for name in names():
        if pattern in name:
            summary = summarise(name)
            table.add_row(*summary[:3], f"{summary.parameters:,}", f"{summary.macs / 1e6:,.1f} M")
    Console(highlight=False).print(table)
