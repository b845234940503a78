"""What has kernels: the classes of networks and of their parts, each told by the module that captures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from ..graph import Graph

# Passes its input on in evaluation.
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Chosen(NamedTuple):
    """A network whose filters another chooses for each image. GaterNet, section 3.

    Attributes:
        backbone: whose filters are chosen.
        masks: path of each gated convolution, or of what joins some, in the backbone to its first gate.
        gater: sees the image first; its classifier is the first linear map on its features.
        last: the linear map behind that and a ReLU, to the filters' scores.
    """

    backbone: nn.Module
    masks: Mapping[str, int]
    gater: nn.Module
    last: nn.Linear


class Family(NamedTuple):
    """A class and how its objects are captured.

    Attributes:
        blueprint: what the class builds, fresh, for an object of it, from its configuration or the shapes in it.
        network: from a whole network, the side of the maps that enter the graph and perhaps the masks of its filters to
            the graph; None for anything else.
        part: from a part of a network to a graph that loads a map and stores one, or leaves logits; None likewise.
        chosen: from a network whose filters another chooses to both of them; None likewise.
        stem: the part of an ImageNet stem that torch runs.
        limits: from thresholds as the network takes them, or None, and its configuration to the thresholds of each name
            of gates: a number for all of them, or one for each; None for a network without gates.
        parts_decide: the gates are decided within parts, which may stand in another network.
    """

    blueprint: Callable[[Any], nn.Module]
    network: Callable[..., Graph] | None = None
    part: Callable[[Any], Graph] | None = None
    chosen: Callable[[Any], Chosen] | None = None
    stem: Callable[[Any], nn.Module] = lambda model: model.stem
    limits: Callable[[Any, Any], Mapping[str, float | Sequence[float]]] | None = None
    parts_decide: bool = False


FAMILIES: dict[type[nn.Module], Family] = {}


def from_config(model: Any) -> nn.Module:
    """The blueprint of a network that its configuration tells."""
    family: Any = family_of(model)
    return family(model.config)


def family_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of :data:`FAMILIES` that ``module`` is an object of, be it by inheritance; None if of none."""
    kinds = parametrize.type_before_parametrizations(module).__mro__
    return next((kind for kind in kinds if kind in FAMILIES), None)


def networks() -> tuple[type[nn.Module], ...]:
    """The classes of whole networks."""
    return tuple(kind for kind, family in FAMILIES.items() if family.network or family.chosen)


def parts() -> tuple[type[nn.Module], ...]:
    """The classes of parts of networks."""
    return tuple(kind for kind, family in FAMILIES.items() if family.part is not None)


def flat(sequence: Any, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of a sequence and of those in it, without those that pass their input on."""
    for name, module in sequence.named_children():
        where = f"{path}.{name}" if path else name
        if type(module) is nn.Sequential:
            yield from flat(module, where)
        elif type(module) not in NOTHING:
            yield where, module


def _convolution(conv: Any) -> nn.Module:
    sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return nn.Conv2d(*sizes, conv.groups, conv.bias is not None, conv.padding_mode)


FAMILIES |= {
    nn.Linear: Family(lambda m: nn.Linear(m.in_features, m.out_features, m.bias is not None)),
    nn.Conv2d: Family(_convolution),
    nn.BatchNorm2d: Family(lambda m: nn.BatchNorm2d(m.num_features)),
    nn.SyncBatchNorm: Family(lambda m: nn.BatchNorm2d(m.num_features)),
}
