"""DenseNet (Huang et al., https://arxiv.org/abs/1608.06993) and the parts that gated networks share with it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .described import Described
from .errors import UserError
from .tensors import hint

StemKind = Literal["conv3x3", "imagenet"]
# A unit's convolutions in order, each with the batch norm that its output meets inside the unit, if any.
Convolutions = tuple[tuple[str, str | None], ...]


def make_stem(kind: StemKind, in_channels: int, out_channels: int) -> nn.Module:
    """The layers before the first block.

    ``"conv3x3"``: one 3x3 convolution, same size. ``"imagenet"``: conv7x7/2-BN-ReLU-max-pool, a quarter of the size.

    Raises:
        UserError: ``kind`` is neither.
    """
    if kind == "conv3x3":
        return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    if kind == "imagenet":
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False),
                norm=nn.BatchNorm2d(out_channels),
                relu=nn.ReLU(),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
    raise UserError(f"stem is {kind!r}; expected one of {', '.join(get_args(StemKind))}")


def init_weights(module: nn.Module) -> None:
    """He-normal convolutions and zero biases of classifiers, in place, as the DenseNet and ResNet papers do."""
    for m in module.modules():
        # A meta tensor has no values; to draw them torch would first import its compiler, which takes seconds.
        if isinstance(m, nn.Conv2d) and not m.weight.is_meta:
            nn.init.kaiming_normal_(m.weight)
        elif isinstance(m, Head):
            nn.init.zeros_(m.classifier.bias)


def check_images(images: Tensor, in_channels: int, image_size: int, dtype: torch.dtype) -> None:
    """Refuses images that are not [B, in_channels, image_size, image_size] of ``dtype``.

    Raises:
        UserError: in one line, what was given and what was expected.
    """
    expected = f"[B, {in_channels}, {image_size}, {image_size}] {str(dtype).removeprefix('torch.')}"
    if not isinstance(images, Tensor):
        raise UserError(f"images are a {type(images).__name__}; expected a tensor {expected}")
    if images.dim() != 4 or images.shape[1] != in_channels or tuple(images.shape[2:]) != (image_size, image_size):
        todo = hint(images, 4) or ": resize them, or create the model with other image_size or in_channels"
        raise UserError(f"images have shape {list(images.shape)}; expected {expected}{todo}")
    if images.dtype != dtype:
        given = str(images.dtype).removeprefix("torch.")
        raise UserError(f"images are {given}; expected {expected}: convert them with images.to({dtype})")


class DenseLayer(nn.Module):
    """Pre-activation dense layer; returns its own ``growth_rate`` channels only.

    Plain: BN-ReLU-3x3(k). Bottleneck: BN-ReLU-1x1(4k)-BN-ReLU-3x3(k). [B, C, H, W] to [B, k, H, W].
    """

    def __init__(self, in_channels: int, growth_rate: int, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.convolutions: Convolutions = (("conv1", "norm2"), ("conv2", None)) if bottleneck else (("conv1", None),)
        self.norm1 = nn.BatchNorm2d(in_channels)
        if bottleneck:
            width = 4 * growth_rate
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, growth_rate, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True)) if self.bottleneck else x


class Transition(nn.Module):
    """BN-ReLU-1x1 convolution-2x2 average pool. [B, C, H, W] to [B, out_channels, H // 2, W // 2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(x), inplace=True)
        if (
            self.training
        ):  # pooling and the 1x1 are linear and commute; pooled first, training does a quarter of the 1x1
            return self.conv(F.avg_pool2d(x, 2))
        return F.avg_pool2d(self.conv(x), 2)


class Head(nn.Module):
    """BN-ReLU-global average pool-linear. [B, C, H, W] to logits [B, classes]."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C]
        """What the classifier reads."""
        return F.relu(self.norm(x), inplace=True).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class DenseBlock(nn.Module):
    """Dense layers, each reading everything before it. [B, C, H, W] to [B, C + L k, H, W]."""

    def __init__(self, in_channels: int, growth_rate: int, layers: int, bottleneck: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(in_channels + i * growth_rate, growth_rate, bottleneck) for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


@dataclass(frozen=True)
class DenseNetConfig:
    """What :class:`DenseNet` is built from; a transition keeps ``floor(compression * channels)`` channels."""

    name: str
    growth_rate: int
    block_layers: tuple[int, ...]
    bottleneck: bool
    compression: float
    classes: int
    in_channels: int = 3
    image_size: int = 32
    stem: StemKind = "conv3x3"


class DenseNet(Described, nn.Module):
    """DenseNet for one task: stem (2k channels), dense blocks with transitions between, head.

    ``forward``: images [B, in_channels, image_size, image_size] to logits [B, classes].

    Raises:
        UserError: the images do not fit.
    """

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = 2 * config.growth_rate
        self.stem = make_stem(config.stem, config.in_channels, channels)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for i, layers in enumerate(config.block_layers):
            if i > 0:
                width = int(config.compression * channels)
                self.transitions.append(Transition(channels, width))
                channels = width
            self.blocks.append(DenseBlock(channels, config.growth_rate, layers, config.bottleneck))
            channels += layers * config.growth_rate
        self.head = Head(channels, config.classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.config.in_channels, self.config.image_size, next(self.stem.parameters()).dtype)
        x = self.blocks[0](self.stem(images))
        for transition, block in zip(self.transitions, list(self.blocks)[1:], strict=True):
            x = block(transition(x))
        return self.head(x)


ZOO = (
    (DenseNetConfig("densenet-40", 12, (12, 12, 12), False, 1.0, 100), "CIFAR-100"),
    (DenseNetConfig("densenet-bc-100", 12, (16, 16, 16), True, 0.5, 100), "CIFAR-100"),
    (DenseNetConfig("densenet-121", 32, (6, 12, 24, 16), True, 0.5, 1000, image_size=224, stem="imagenet"), "ImageNet"),
    *(
        (DenseNetConfig(f"densenet-{depth}-{k}", k, ((depth - 4) // 6,) * 3, True, 0.5, 10), "CIFAR-10")
        for depth, k in ((100, 12), (250, 24), (190, 40))
    ),
)
