"""How each class builds what is given: a fresh module from a configuration, or from the shapes of what a part holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from dsn_models.densenet import DenseBlock, DenseLayer, DenseNet, Head, Transition
from dsn_models.dual_skipping import DualSkippingNetwork, SkipDenseBlock
from dsn_models.errors import UserError
from dsn_models.gaternet import GaterNet, find_gate_points
from dsn_models.gradually_updated import GradualLayer, GraduallyUpdatedNetwork
from dsn_models.inception import Branches, ConvNorm, InceptionV4
from dsn_models.layer_skippable import LayerSkippableNetwork
from dsn_models.lenet import LeNet
from dsn_models.resnet import BasicUnit, BottleneckUnit, PadShortcut, PreActivationUnit, ResidualBottleneck, ResNet
from dsn_models.shake_shake import ShakeShake, ShakeUnit
from dsn_models.skipnet import FeedForwardGate, RecurrentGate, SkipNet

# Passes its input on in evaluation.
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def family_of(module: nn.Module) -> type[nn.Module] | None:
    """The class of :data:`BLUEPRINTS` that ``module`` is an object of, be it by inheritance; None if of none."""
    kinds = parametrize.type_before_parametrizations(module).__mro__
    return next((kind for kind in kinds if kind in BLUEPRINTS), None)


def flat(sequence: Any, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of a sequence and of those in it, without those that pass their input on."""
    for name, module in sequence.named_children():
        where = f"{path}.{name}" if path else name
        if type(module) is nn.Sequential:
            yield from flat(module, where)
        elif type(module) not in NOTHING:
            yield where, module


def _network(model: Any) -> nn.Module:
    family: Any = family_of(model)
    return family(model.config)


def _inception(model: Any) -> nn.Module:
    """Whatever is in its stem and units, which a plan takes as they are arranged."""
    fresh: Any = InceptionV4(model.config)
    fresh.stem, fresh.units = _inception_part(model.stem), _inception_part(model.units)
    last: Any = [module for _, module in flat(model.head)][-1]
    fresh.head[-1] = nn.Linear(last.in_features, model.config.classes)
    return fresh


def _gaternet(model: Any) -> nn.Module:
    """Around the backbone that is given."""
    fresh: Any = GaterNet(model.config)
    family = family_of(model.backbone)
    if family is None:
        raise UserError(f"backbone is a {type(model.backbone).__name__}, which is of no family that has kernels")
    fresh.backbone = BLUEPRINTS[family](model.backbone)
    fresh.gate_points = find_gate_points(fresh.backbone, model.config.gated)
    fresh.gater.fc2 = nn.Linear(model.config.bottleneck, fresh.num_gates)
    return fresh


def _residual_unit(unit: Any) -> nn.Module:
    family: Any = family_of(unit)
    body = unit.residual if family is ResidualBottleneck else unit
    last = body.conv2 if family is BasicUnit else body.conv3
    stride = max(body.conv1.stride[0], body.conv2.stride[0])
    shortcut = "pad" if isinstance(unit.shortcut, PadShortcut) else "projection"
    return family(body.conv1.in_channels, last.out_channels, stride, shortcut)


def _shake_unit(unit: Any) -> nn.Module:
    first, last = unit.branch1.conv1, unit.branch1.conv2
    return ShakeUnit(first.in_channels, last.out_channels, first.stride[0])


def _dense_layer_shape(layer: Any) -> tuple[int, int, bool]:
    """Input channels, growth rate and whether there is a bottleneck."""
    growth = (layer.conv2 if layer.bottleneck else layer.conv1).out_channels
    return layer.norm1.num_features, growth, layer.bottleneck


def _dense_block(block: Any) -> nn.Module:
    channels, growth, bottleneck = _dense_layer_shape(block.layers[0])
    return DenseBlock(channels, growth, len(block.layers), bottleneck)


def _skip_dense_block(block: Any) -> nn.Module:
    first, count, kind = block.layers[0], len(block.layers), block.gates[0].kind
    if block.merge == "add":
        channels = first.conv3.out_channels
        layers: list[nn.Module] = [PreActivationUnit(channels, channels) for _ in range(count)]
        return SkipDenseBlock(channels, layers, 0, "add", kind)
    channels, growth, bottleneck = _dense_layer_shape(first)
    layers = [DenseLayer(channels + i * growth, growth, bottleneck) for i in range(count)]
    return SkipDenseBlock(channels, layers, growth, "concat", kind)


def _gradual_layer(layer: Any) -> nn.Module:
    unit = layer.units[0]
    expansion = unit.bodies[0][0].out_channels // layer.sizes[0]
    units, shortcut = len(unit.bodies), unit.shortcut is not None
    return GradualLayer(layer.sizes, expansion, units, shortcut, layer.order, layer.recompute)


def _inception_part(module: Any) -> nn.Module:
    """Branches, and what they are made of, whatever their arrangement."""
    if isinstance(module, Branches):
        return Branches(module.in_channels, *map(_inception_part, module.branches))
    if isinstance(module, ConvNorm):
        conv: Any = module.conv
        return ConvNorm(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride[0], not any(conv.padding))
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(_inception_part(m) for _, m in flat(module)))
    if isinstance(module, nn.MaxPool2d):
        return nn.MaxPool2d(module.kernel_size, module.stride, module.padding)
    if isinstance(module, nn.AvgPool2d):
        counted = module.count_include_pad and not module.padding  # without padding it says nothing
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, count_include_pad=counted)
    raise UserError(f"a {type(module).__name__} in Branches; expected ConvNorm, Branches, a sequence or a pool of them")


def _convolution(conv: Any) -> nn.Module:
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
    )


BLUEPRINTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    DualSkippingNetwork: _network,
    LayerSkippableNetwork: _network,
    DenseNet: _network,
    ResNet: _network,
    SkipNet: _network,
    GaterNet: _gaternet,
    GraduallyUpdatedNetwork: _network,
    ShakeShake: _network,
    InceptionV4: _inception,
    LeNet: _network,
    BasicUnit: _residual_unit,
    BottleneckUnit: _residual_unit,
    ResidualBottleneck: _residual_unit,
    ShakeUnit: lambda u: ShakeUnit(
        u.branch1.conv1.in_channels, u.branch1.conv2.out_channels, u.branch1.conv1.stride[0]
    ),
    Branches: _inception_part,
    GradualLayer: _gradual_layer,
    DenseBlock: _dense_block,
    SkipDenseBlock: _skip_dense_block,
    Transition: lambda t: Transition(t.norm.num_features, t.conv.out_channels),
    Head: lambda h: Head(h.norm.num_features, h.classifier.out_features),
    FeedForwardGate: lambda g: FeedForwardGate(g.conv1.in_channels, g.deep),
    RecurrentGate: lambda g: RecurrentGate(),
    nn.Linear: lambda m: nn.Linear(m.in_features, m.out_features, m.bias is not None),
    nn.Conv2d: _convolution,
    nn.BatchNorm2d: lambda m: nn.BatchNorm2d(m.num_features),
    nn.SyncBatchNorm: lambda m: nn.BatchNorm2d(m.num_features),
}
