"""ResNet (He et al., https://arxiv.org/abs/1512.03385) and its pre-activation form (https://arxiv.org/abs/1603.05027)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from .densenet import Convolutions, Head, StemKind, check_images, init_weights, make_stem
from .described import Described
from .errors import UserError

UnitKind = Literal["basic", "bottleneck", "preact"]
ShortcutKind = Literal["projection", "pad"]


class SqueezeExcitation(nn.Module):
    """``x sigmoid(W2 relu(W1 p + b1) + b2)`` by channel, p the mean of x over its pixels. https://arxiv.org/abs/1709.01507

    [B, channels, H, W] to the same shape; W1 leads to ``hidden`` channels.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        factors = self.expand(F.relu(self.reduce(x.mean((2, 3))))).sigmoid()
        return x * factors[:, :, None, None]


def _excitation(channels: int, hidden: int) -> SqueezeExcitation | None:
    return SqueezeExcitation(channels, hidden) if hidden else None


class PreActivationUnit(nn.Module):
    """The residual of a bottleneck unit: BN-ReLU-1x1(w)-BN-ReLU-3x3(w)-BN-ReLU-1x1(N), w = N / 4, no shortcut added.

    With ``hidden``, a :class:`SqueezeExcitation` behind it. [B, in_channels, H, W] to [B, out_channels, H / stride, W /
    stride]. The caller adds the shortcut.
    """

    convolutions: ClassVar[Convolutions] = (("conv1", "norm2"), ("conv2", "norm3"), ("conv3", None))

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, hidden: int = 0) -> None:
        super().__init__()
        width = out_channels // 4
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.excitation = _excitation(out_channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        x = self.conv2(F.relu(self.norm2(x)))
        x = self.conv3(F.relu(self.norm3(x)))
        return x if self.excitation is None else self.excitation(x)


class PadShortcut(nn.Module):
    """Option A of the ResNet paper: every ``stride``-th pixel, zero channels added evenly on both sides. No weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        before = (out_channels - in_channels) // 2
        self.stride, self.padding = stride, (0, 0, 0, 0, before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


def _make_shortcut(kind: ShortcutKind, norm: bool, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels)) if norm else projection


class ResidualUnit(nn.Module):
    """What the units share. ``shortcut``: identity, or where the shape changes a projection (1x1) or padding.

    - ``residual(x)``: the branch of convolutions, before the shortcut is added; with ``hidden`` channels, a
      :class:`SqueezeExcitation` ends it.
    - ``merge(shortcut, residual)``: their sum, with the ReLU of post-activation units.
    - ``with_shortcut(x, shortcut)``: ``merge(shortcut, residual(x))``.
    - ``forward(x)``: the same, with ``shortcut(x)``.
    """

    residual: Callable[[Tensor], Tensor]
    shortcut: nn.Module

    def merge(self, shortcut: Tensor, residual: Tensor) -> Tensor:
        return F.relu(shortcut + residual)

    def with_shortcut(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return self.merge(shortcut, self.residual(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.with_shortcut(x, self.shortcut(x))


class BasicUnit(ResidualUnit):
    """Post-activation basic unit: ReLU(shortcut + BN-3x3-ReLU-BN-3x3); a projection is followed by BN."""

    convolutions: ClassVar[Convolutions] = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: ShortcutKind = "projection", hidden: int = 0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.excitation = _excitation(out_channels, hidden)
        self.shortcut = _make_shortcut(shortcut, True, in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        return x if self.excitation is None else self.excitation(x)


class BottleneckUnit(ResidualUnit):
    """Post-activation bottleneck: ReLU(shortcut + BN-1x1(N)-ReLU-BN-3x3(w)-ReLU-BN-1x1(w)), w = N / 4, N outputs.

    The 3x3 convolution has the stride, as in torchvision. A projection is followed by BN.
    """

    convolutions: ClassVar[Convolutions] = (("conv1", "norm1"), ("conv2", "norm2"), ("conv3", "norm3"))

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: ShortcutKind = "projection", hidden: int = 0
    ) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.excitation = _excitation(out_channels, hidden)
        self.shortcut = _make_shortcut(shortcut, True, in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = self.norm3(self.conv3(x))
        return x if self.excitation is None else self.excitation(x)


class ResidualBottleneck(ResidualUnit):
    """Pre-activation bottleneck unit: shortcut + residual, no ReLU after; a projection has no BN."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: ShortcutKind = "projection", hidden: int = 0
    ) -> None:
        super().__init__()
        self.residual = PreActivationUnit(in_channels, out_channels, stride, hidden)
        self.shortcut = _make_shortcut(shortcut, False, in_channels, out_channels, stride)

    def merge(self, shortcut: Tensor, residual: Tensor) -> Tensor:
        return shortcut + residual


_UNITS = {"basic": BasicUnit, "bottleneck": BottleneckUnit, "preact": ResidualBottleneck}


@dataclass(frozen=True)
class ResNetConfig:
    """What :class:`ResNet` is built from.

    Attributes:
        name: zoo name.
        stage_units: residual units of each stage.
        stage_widths: output channels of each stage's units; bottlenecks are a quarter as wide inside.
        stem_width: output channels of the stem.
        unit: ``"basic"`` and ``"bottleneck"`` (post-activation), ``"preact"`` (pre-activation bottleneck).
        classes: of the task.
        in_channels, image_size: images are [B, in_channels, image_size, image_size].
        stem: ``"conv3x3"`` or ``"imagenet"``.
        shortcut: where the shape changes: ``"projection"`` (1x1) or ``"pad"`` (option A of the ResNet paper).
        excitation: r, by which a squeeze-and-excitation at the end of each residual reduces the channels; 0: none.

    Raises:
        UserError: a field has a value outside the above.
    """

    name: str
    stage_units: tuple[int, ...]
    stage_widths: tuple[int, ...]
    stem_width: int
    unit: UnitKind
    classes: int
    in_channels: int = 3
    image_size: int = 32
    stem: StemKind = "conv3x3"
    shortcut: ShortcutKind = "projection"
    excitation: int = 0

    def __post_init__(self) -> None:
        for field, allowed in (("unit", UnitKind), ("stem", StemKind), ("shortcut", ShortcutKind)):
            if getattr(self, field) not in get_args(allowed):
                raise UserError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(get_args(allowed))}")
        if not self.stage_units or min(self.stage_units) < 1:
            raise UserError(f"stage_units is {self.stage_units}; expected one positive number per stage")
        if len(self.stage_widths) != len(self.stage_units):
            raise UserError(f"stage_widths is {self.stage_widths}; expected one width per stage")
        if min(self.stage_widths) < 1 or self.unit != "basic" and any(width % 4 for width in self.stage_widths):
            raise UserError(f"stage_widths is {self.stage_widths}; expected positive numbers, multiples of 4 for "
                            "bottlenecks")  # fmt: skip
        if min(self.stem_width, self.classes, self.in_channels, self.image_size) < 1:
            raise UserError("stem_width, classes, in_channels and image_size must be positive")
        if self.excitation < 0:
            raise UserError(f"excitation is {self.excitation}; expected a reduction of 1 or more, or 0 for none")


def make_resnet_stem(config: ResNetConfig) -> nn.Module:
    """The stem; the 3x3 stem of post-activation networks is followed by BN-ReLU, as ``"imagenet"`` always is."""
    stem = make_stem(config.stem, config.in_channels, config.stem_width)
    if config.unit != "preact" and config.stem == "conv3x3":
        return nn.Sequential(stem, nn.BatchNorm2d(config.stem_width), nn.ReLU())
    return stem


def make_units(config: ResNetConfig) -> list[ResidualUnit]:
    """The residual units of all stages; the first of each later stage halves the map."""
    channels, units = config.stem_width, []
    for stage, (count, width) in enumerate(zip(config.stage_units, config.stage_widths, strict=True)):
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            hidden = max(width // config.excitation, 1) if config.excitation else 0
            units.append(_UNITS[config.unit](channels, width, stride, config.shortcut, hidden))
            channels = width
    return units


def make_resnet_head(config: ResNetConfig) -> nn.Module:
    """GAP-linear, after BN-ReLU where the units are pre-activation ones."""
    channels = config.stage_widths[-1]
    if config.unit == "preact":
        return Head(channels, config.classes)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, config.classes))


class ResNet(Described, nn.Module):
    """ResNet for one task: stem, stages of residual units (the first unit of each later stage halves the map), head.

    The head of pre-activation networks is BN-ReLU-GAP-linear; that of the others GAP-linear, and their 3x3 stem is
    followed by BN-ReLU. ``forward``: images [B, in_channels, image_size, image_size] to logits [B, classes].

    Raises:
        UserError: the images do not fit.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = make_resnet_stem(config)
        self.units = nn.Sequential(*make_units(config))
        self.head = make_resnet_head(config)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        check_images(images, self.config.in_channels, self.config.image_size, dtype)
        return self.head(self.units(self.stem(images)))


Config = TypeVar("Config", bound=ResNetConfig)


def config_on(kind: type[Config], backbone: ResNetConfig, **changes: Any) -> Config:
    """The configuration of a network of ``kind`` on a backbone: its fields, and ``changes``."""
    fields = {field.name: getattr(backbone, field.name) for field in dataclasses.fields(ResNetConfig)}
    return kind(**{**fields, **changes})


class OnResNet:
    """What networks share that have the stem, units and head of a :class:`ResNet` and choose among the units."""

    def load_backbone(self: Any, backbone: ResNet) -> None:
        """Copies the weights of a residual network of the same shape, in place; the gates are left as they are.

        Raises:
            UserError: stem, units or head differ in shape.
        """
        shape = [field.name for field in dataclasses.fields(ResNetConfig) if field.name != "name"]
        for name in shape:
            given, wanted = getattr(backbone.config, name), getattr(self.config, name)
            if given != wanted:
                raise UserError(
                    f"backbone {backbone.config.name} has {name} {given}; {self.config.name} needs {wanted}"
                )
        for part in ("stem", "units", "head"):
            getattr(self, part).load_state_dict(getattr(backbone, part).state_dict())

    def dense_equivalent(self: Any) -> ResNet:
        """The same weights without gates: every unit runs. Shares this network's parameters."""
        dense = ResNet(config_on(ResNetConfig, self.config))
        dense.stem, dense.units, dense.head = self.stem, nn.Sequential(*self.units), self.head
        return dense.train(self.training)


def _imagenet(
    depth: int,
    units: tuple[int, ...],
    unit: UnitKind,
    suffix: str = "",
    widths: tuple[int, ...] = (64, 128, 256, 512),
    **options: Any,
) -> tuple[ResNetConfig, str]:
    """``widths``: of each stage's 3x3 convolutions, and the first of the stem."""
    outputs = tuple((1 if unit == "basic" else 4) * width for width in widths)
    name, sizes = f"resnet-{depth}{suffix}", dict[str, Any](image_size=224, **options)
    return ResNetConfig(name, units, outputs, widths[0], unit, 1000, stem="imagenet", **sizes), "ImageNet"


def _cifar(
    n: int, suffix: str = "", widths: tuple[int, ...] = (16, 32, 64), **options: Any
) -> tuple[ResNetConfig, str]:
    return ResNetConfig(f"resnet-{6 * n + 2}{suffix}", (n, n, n), widths, widths[0], "basic", 10, **options), "CIFAR-10"


def _preact(suffix: str, classes: int, widths: tuple[int, ...], **options: Any) -> ResNetConfig:
    return ResNetConfig(f"resnet-164{suffix}", (18, 18, 18), widths, 16, "preact", classes, **options)


_BASIC_34, _BOTTLENECKS_101, _BOTTLENECKS_152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)

# "-wider" and "-se" are the baselines of GaterNet's tables 1 and 3. Widths and reductions are not in the paper: these
# are the ones that meet its parameter counts. No even widening of ResNet-152 meets its 81.37 M; by 1.165, the nearest,
# it has 81.21 M.
ZOO = (
    _imagenet(18, (2, 2, 2, 2), "basic"),
    _imagenet(34, _BASIC_34, "basic"),
    _imagenet(50, (3, 4, 6, 3), "bottleneck"),
    _imagenet(101, _BOTTLENECKS_101, "bottleneck"),
    _imagenet(152, _BOTTLENECKS_152, "bottleneck"),
    *(_cifar(n, shortcut="pad") for n in (3, 5, 6, 9, 12, 18)),
    (_preact("", 100, (64, 128, 256)), "CIFAR-100"),
    (_preact("-narrow", 10, (16, 128, 256)), "CIFAR-10"),
    _cifar(3, "-wider", (23, 46, 92)),
    _cifar(9, "-wider", (18, 36, 72)),
    (_preact("-wider", 10, (16, 144, 288)), "CIFAR-10"),
    _cifar(3, "-se", excitation=4),
    _cifar(9, "-se", excitation=4),
    (_preact("-se", 10, (16, 128, 256), excitation=8), "CIFAR-10"),
    _imagenet(34, _BASIC_34, "basic", "-wider", (80, 160, 320, 640)),
    _imagenet(101, _BOTTLENECKS_101, "bottleneck", "-wider", (74, 148, 296, 592)),
    _imagenet(152, _BOTTLENECKS_152, "bottleneck", "-wider", (75, 149, 298, 597)),
    _imagenet(34, _BASIC_34, "basic", "-se", excitation=16),
    _imagenet(101, _BOTTLENECKS_101, "bottleneck", "-se", excitation=16),
    _imagenet(152, _BOTTLENECKS_152, "bottleneck", "-se", excitation=16),
)
