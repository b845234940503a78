"""LeNet-5 as a plan of the native runtime."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsn_models.lenet import LeNet

from ..ops.network import Plan
from .packing import pack_folded
from .plan_builder import Masks, PlanBuilder


def plan_lenet(model: LeNet, side: int, masks: Masks | None = None, bfloat16: bool = False) -> tuple[Plan, Tensor]:
    """The plan of ``model`` and the packed weights it names, float32.

    A linear layer on flattened maps is a convolution with a kernel of the maps' size.
    """
    planner = PlanBuilder(masks, bfloat16=bfloat16)
    x = planner.load(model.config.in_channels, side)
    layers: list[Any] = [*model.features, *model.classifier]
    for layer in layers[:-1]:
        if isinstance(layer, nn.Conv2d):
            x = planner.conv(
                layer, None, x, planner.buffer(layer.out_channels, planner.side(x) - layer.kernel_size[0] + 1)
            )
        elif isinstance(layer, nn.AvgPool2d):
            x = planner.pool("avg_pool", x, planner.buffer(planner.channels(x), planner.side(x) // 2), 2, 2)
        elif isinstance(layer, nn.Linear):
            weight = layer.weight.double().unflatten(1, (planner.channels(x), planner.side(x), planner.side(x)))
            packed = pack_folded(planner.packer, weight, layer.bias.double())
            dst = planner.buffer(layer.out_features, 1)
            x = planner.packed_conv(packed, x, dst, stride=1, columns=planner.side(x))
        else:
            planner.plan.add("tanh", src=x, in_channels=planner.channels(x))
    planner.head(x, [layers[-1]])
    return planner.result()
