"""ResNet (He et al., https://arxiv.org/abs/1512.03385) and its pre-activation form (https://arxiv.org/abs/1603.05027)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .densenet import Head, StemKind, check_images, init_weights, make_stem


class PreActivationUnit(nn.Module):
    """The residual of a bottleneck unit: BN-ReLU-1x1(w)-BN-ReLU-3x3(w)-BN-ReLU-1x1(N), w = N / 4, no shortcut added.

    [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]. The caller adds the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // 4
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x)))
        x = self.conv2(F.relu(self.norm2(x)))
        return self.conv3(F.relu(self.norm3(x)))


class ResidualBottleneck(nn.Module):
    """Pre-activation bottleneck unit with its shortcut: a 1x1 convolution where the shape changes, else x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = PreActivationUnit(in_channels, out_channels, stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class BasicUnit(nn.Module):
    """Post-activation basic unit: ReLU(shortcut + BN-3x3-ReLU-BN-3x3), 1x1-BN shortcut where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + y)


@dataclass(frozen=True)
class ResNetConfig:
    """What :class:`ResNet` is built from."""

    name: str
    stage_units: tuple[int, ...]
    stage_widths: tuple[int, ...]
    stem_width: int
    unit: Literal["basic", "preact"]
    classes: int
    in_channels: int = 3
    image_size: int = 32
    stem: StemKind = "conv3x3"


class ResNet(nn.Module):
    """ResNet for one task: stem, stages of residual units (the first unit of each later stage halves the map), head.

    The head of pre-activation networks is BN-ReLU-GAP-linear; that of basic ones GAP-linear, and their 3x3 stem is
    followed by BN-ReLU. ``forward``: images [B, in_channels, image_size, image_size] to logits [B, classes].

    Raises:
        UserError: the images do not fit.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.stem_width
        self.stem = make_stem(config.stem, config.in_channels, channels)
        if config.unit == "basic" and config.stem == "conv3x3":
            self.stem = nn.Sequential(self.stem, nn.BatchNorm2d(channels), nn.ReLU())
        make_unit = BasicUnit if config.unit == "basic" else ResidualBottleneck
        units: list[nn.Module] = []
        for stage, (count, width) in enumerate(zip(config.stage_units, config.stage_widths, strict=True)):
            for i in range(count):
                units.append(make_unit(channels, width, 2 if stage > 0 and i == 0 else 1))
                channels = width
        self.units = nn.Sequential(*units)
        self.head: nn.Module
        if config.unit == "preact":
            self.head = Head(channels, config.classes)
        else:
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, config.classes))
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        check_images(images, self.config.in_channels, self.config.image_size, dtype)
        return self.head(self.units(self.stem(images)))
