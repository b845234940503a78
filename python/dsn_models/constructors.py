"""Networks of other people's that were made to skip: from their constructor's name, their weights and what is gated.

A checkpoint of such a network names the function that constructs it. That function is code, and the file may come from
anywhere: nothing is imported that the user has not named too.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import UserError
from .gated import GatedNetwork, UnitGateKind
from .gating import GateReport, gate
from .skipnet import check_threshold
from .units import Units
from .wrappers import COUNTER, bare
from .zoo import FAMILIES, family_of

#: What constructs the networks of the zoo: code of ours, which needs nobody's leave.
ZOO = "dsn_models.zoo:network"
_TOLD = 5  # differences between weights and network


@dataclass(frozen=True)
class ConstructedConfig:
    """How to construct a gated network again that is none of the zoo's.

    Attributes:
        name: what tables call it: a zoo network's own name, else its constructor's.
        arch: the constructor, ``"package.module:function"``.
        options: its keyword arguments, plain values.
        classes: of its one task.
        in_channels, image_size: of the images that it was gated with.
        units: paths of the gated modules in the network as it is constructed, in the order in which they run.
        kind: of the gates, as of :func:`.gating.gate`.
        threshold: a unit runs iff its score exceeds it.
        layer_thresholds: one for each unit in place of ``threshold``.
    """

    #: Under which checkpoints keep it; see :func:`.zoo.family_of`.
    family: ClassVar[str] = "constructed"

    name: str
    arch: str
    options: dict[str, Any]
    classes: int
    in_channels: int
    image_size: int
    units: tuple[str, ...]
    kind: UnitGateKind = "pooled"
    threshold: float = 0.5
    layer_thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for limit in self.gate_thresholds:
            check_threshold(limit)
        if len(self.gate_thresholds) != len(self.units):
            raise UserError(f"layer_thresholds has {len(self.gate_thresholds)} numbers; expected {len(self.units)}")

    @property
    def gate_thresholds(self) -> tuple[float, ...]:
        """One for each unit."""
        return self.layer_thresholds or (self.threshold,) * len(self.units)

    @property
    def block_layers(self) -> tuple[int, ...]:
        """Units of each stage: of those in a row, how many lie in the same module."""
        stages = itertools.groupby(self.units, lambda unit: unit.rpartition(".")[0])
        return tuple(len([*units]) for _, units in stages)


def zoo_options(network: Any) -> dict[str, Any]:
    """What :data:`ZOO` makes a network of the zoo of again, as a checkpoint keeps it.

    Raises:
        UserError: the network is none of the zoo's, or has gates.
    """
    family, fields = family_of(network), dataclasses.asdict(network.config)
    if family not in FAMILIES or getattr(network, "gate_counts", None):
        raise UserError(
            f"{network.config.name} has gates already; give the network without them that it was made of, or move "
            "what its gates do: dsn sweep CKPT --budget macs=0.6"
        )
    classes = fields.pop("classes")
    kept: dict[str, Any] = json.loads(json.dumps({"family": family, "num_classes": classes, **fields}))
    return kept


def construct(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """Imports a constructor and calls it.

    Args:
        arch: ``"package.module:function"``; a class will do.
        options: its keyword arguments; lists become tuples.

    Returns:
        The network in ``eval()``, float32.

    Raises:
        UserError: the module cannot be imported, has no such function, or that fails or returns no network.
    """
    module_name, colon, name = arch.partition(":")
    if not (module_name and colon and name):
        raise UserError(f"arch is {arch!r}; expected package.module:function, such as torchvision.models:resnet50")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is anybody's and may fail in any way
        reason = _reason(error)
        raise UserError(
            f"arch is {arch!r}, but {module_name} cannot be imported ({reason}); install or fix it"
        ) from error
    try:
        function = getattr(module, name)
    except AttributeError:
        near = difflib.get_close_matches(name, dir(module), 3)
        hint = f"near it: {', '.join(near)}" if near else "expected a function that returns a network"
        raise UserError(f"arch is {arch!r}, but {module_name} has no {name}; {hint}") from None
    if not callable(function):
        raise UserError(f"arch is {arch!r}, a {type(function).__name__}; expected a function that returns a network")
    try:
        network = function(**{key: _as_tuple(value) for key, value in options.items()})
    except Exception as error:
        told = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise UserError(
            f"{arch} fails when called with ({told}): {_reason(error)}; give its arguments as options"
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(
            f"{arch} returns a {type(network).__name__}; expected a function that returns a torch.nn.Module"
        )
    return network.float().eval()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def check_permitted(arch: str, permitted: str | Sequence[str] | None, where: str) -> None:
    """Refuses a constructor that a file names and the user does not.

    Args:
        arch: that the file names.
        permitted: what the user names, one or several.
        where: the file.

    Raises:
        UserError: ``arch`` is not among ``permitted``, nor :data:`ZOO`.
    """
    names = [permitted] if isinstance(permitted, str) else [*(permitted or ())]
    if arch in (ZOO, *names):
        return
    if not names:
        raise UserError(
            f"{where} holds a network that {arch} constructs, which is code and was not imported; if you trust that "
            f"code, name it: --arch {arch}, in Python load(..., arch={arch!r})"
        )
    raise UserError(
        f"{where} holds a network that {arch} constructs; --arch names {', '.join(names)}, nothing was imported"
    )


@torch.no_grad()
def put_weights(network: nn.Module, weights: Mapping[str, Tensor], whose: str, where: str) -> None:
    """Puts weights, as :func:`.convert.reading.read_released` returns them, into a network.

    Args:
        network: names its tensors as the weights do, but for what wraps a network in either of them (``module.``,
            ``model.``, ...). Counters of batch norms may be missing.
        weights: by name.
        whose: what constructed the network.
        where: the file of the weights.

    Raises:
        UserError: a tensor is missing, left over or of another shape. The first five are named, with near names.
    """
    own = network.state_dict()
    places = {bare(key): key for key in own}
    if len(places) < len(own):
        twice = next(key for key in own if places[bare(key)] != key)
        raise UserError(
            f"{whose} has two tensors whose names are alike but for a wrapper's, such as {twice}; rename one"
        )
    missing = [key for name, key in places.items() if name not in weights and not key.endswith(COUNTER)]
    left = [key for key in weights if key not in places and not key.endswith(COUNTER)]
    absent = {*missing}
    found = []
    for name, key in places.items():
        if key in absent:
            found.append(f"{key} is missing{_near(key, own[key], left, weights)}")
        elif name in weights and weights[name].shape != own[key].shape:
            found.append(f"{key} is {[*weights[name].shape]}, the network's {[*own[key].shape]}")
    found += [f"{key} is left over{_near(key, weights[key], missing, own)}" for key in left]
    if found:
        more = f"; and {len(found) - _TOLD} more differences" if len(found) > _TOLD else ""
        raise UserError(f"{where} does not fit what {whose} constructs: {'; '.join(found[:_TOLD])}{more}")
    for name, key in places.items():
        if name in weights:
            own[key].copy_(weights[name])


@torch.no_grad()
def fitted(
    network: nn.Module, arch: str, options: Mapping[str, Any], classes: int
) -> tuple[nn.Module, dict[str, Any], str]:
    """A network with as many classes as data has, by the ``num_classes`` of its constructor.

    Args:
        network: of ``construct(arch, options)``, with its weights.
        arch, options: as of :func:`construct`.
        classes: of the data.

    Returns:
        The network, the options that construct it, and the names of its fresh tensors, those whose shape the class
        count sets. All as given, and "", where the network has that many classes, or its constructor takes no
        ``num_classes`` or sets more by it than a classifier.
    """
    same = (network, dict(options), "")
    if options.get("num_classes") == classes:
        return same
    own = network.state_dict()
    wider = {**options, "num_classes": classes}
    try:
        other = construct(arch, wider)
    except UserError:  # it takes no such argument
        return same
    tensors = other.state_dict()
    fresh = [name for name, tensor in tensors.items() if name not in own or tensor.shape != own[name].shape]
    alone = [*tensors] == [*own] and all(classes in tensors[name].shape[:1] for name in fresh)
    if not fresh or not alone:
        return same
    for name, tensor in tensors.items():
        if name not in fresh:
            tensor.copy_(own[name])
    return other, wider, ", ".join(fresh)


def _near(key: str, tensor: Tensor, names: Sequence[str], tensors: Mapping[str, Tensor]) -> str:
    """Of names on the other side without a partner, one near ``key``; of those of the same shape, if there are any."""
    alike = [name for name in names if tensors[name].shape == tensor.shape] or names
    near = difflib.get_close_matches(key, alike, 1, 0.4)
    return f" (near it: {near[0]})" if near else ""


def gate_constructed(
    network: nn.Module, arch: str, options: Mapping[str, Any], example: Tensor, units: Units, kind: UnitGateKind
) -> tuple[GatedNetwork, GateReport]:
    """:func:`.gating.gate` of what ``construct(arch, options)`` made, which knows how to construct it again.

    Args:
        network: with its weights.
        arch, options: as of :func:`construct`.
        example: images [B, C, H, H], of which the first is run.
        units, kind: as of :func:`.gating.gate`.

    Raises:
        UserError: as :func:`.gating.gate`; or the network does not run on the image, or gives anything else than logits
            [1, classes].
    """
    if example.shape[2] != example.shape[3]:
        raise UserError(f"images are {[*example.shape]}; expected squares")
    try:
        with torch.no_grad():
            logits = network(example[:1])
    except Exception as error:
        raise UserError(
            f"{arch} constructs a network that fails on images {[*example.shape[1:]]}: {_reason(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        given = [*logits.shape] if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"{arch} constructs a network that gives {given} for one image; expected logits [1, classes]")
    gated, report = gate(network, example, units, kind)
    gated.config = ConstructedConfig(
        name=str(options["name"]) if arch == ZOO else arch.rpartition(":")[2],
        arch=arch,
        options=dict(options),
        classes=logits.shape[1],
        in_channels=example.shape[1],
        image_size=example.shape[2],
        units=tuple(part.name for part in report.parts),
        kind=kind,
    )
    return gated, report


def reconstruct(config: ConstructedConfig) -> GatedNetwork:
    """A gated network anew, with gates that are open and weights as its constructor makes them.

    Raises:
        UserError: the constructor cannot be imported or fails, or makes a network without the units that are gated.
    """
    network = construct(config.arch, config.options)
    example = torch.zeros(1, config.in_channels, config.image_size, config.image_size)
    gated, _ = gate_constructed(network, config.arch, config.options, example, config.units, config.kind)
    if gated.config.units != config.units or gated.config.classes != config.classes:
        raise UserError(
            f"{config.arch} constructs another network than the checkpoint's, of {gated.config.classes} classes and "
            f"{len(gated.config.units)} units that can be gated; expected {config.classes} and {len(config.units)}"
        )
    gated.config = config
    return gated
