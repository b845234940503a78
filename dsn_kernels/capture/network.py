"""A whole network as what runs it: perhaps a stem that torch runs, and a graph behind it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn

from dsn_models.macs import count_macs

from ..graph import Graph
from .builder import Masks
from .folding import folded_conv
from .registry import FAMILIES


class Captured(NamedTuple):
    """A network from images to logits.

    Attributes:
        stem: what torch runs in front of the graph, of the model's dtype; None if the graph takes the images.
        stem_macs: MACs of it for each image.
        graph: the rest.
    """

    stem: nn.Module | None
    stem_macs: int
    graph: Graph


def capture(model: Any, masks: Masks | None = None) -> Captured:
    """The stem and the graph of a network, which :func:`.canonical.canonical` has built.

    Args:
        model: of one of :func:`.registry.networks`, but none whose filters another network chooses.
        masks: path of a convolution to the first of the gates that choose its filters; none are chosen if not given.
    """
    family, config = FAMILIES[type(model)], model.config
    assert family.network is not None
    options = {} if masks is None else {"masks": masks}
    if getattr(config, "stem", None) != "imagenet":
        return Captured(None, 0, family.network(model, config.image_size, **options))
    stem = copy.deepcopy(family.stem(model)).eval()
    shape = (1, config.in_channels, config.image_size, config.image_size)
    image = torch.zeros(shape, dtype=torch.float32, device="meta")
    side = copy.deepcopy(stem).to("meta")(image).shape[-1]
    return Captured(_folded_stem(stem), count_macs(stem, config), family.network(model, side, **options))


def _folded_stem(stem: Any) -> nn.Module:
    """An ImageNet stem with its batch norm folded into the convolution, and the maximum before the ReLU, which sees a
    quarter of the pixels then."""
    conv = copy.deepcopy(stem.conv)
    weight, bias = (x.to(conv.weight.dtype) for x in folded_conv(stem.conv, stem.norm))
    conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return nn.Sequential(conv, stem.pool, nn.ReLU(inplace=True))
