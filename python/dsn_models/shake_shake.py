"""Shake-Shake networks (Gastaldi, https://arxiv.org/abs/1705.07485): residual units of two randomly mixed branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .densenet import Convolutions, check_images, init_weights
from .described import Described
from .distributed import own_rows, world_size


class ShakeBranch(nn.Module):
    """ReLU-3x3-BN-ReLU-3x3-BN. [B, in_channels, H, W] to [B, out_channels, H / stride, W / stride]."""

    convolutions: ClassVar[Convolutions] = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(F.relu(x))))
        return self.norm2(self.conv2(x))


class ShakeShortcut(nn.Module):
    """ReLU, then the halves of the output from two samplings of the input, one pixel apart, by a 1x1 each; then BN."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (-1, 1, -1, 1))
        halves = [conv(y[:, :, :: self.stride, :: self.stride]) for conv, y in ((self.conv1, x), (self.conv2, shifted))]
        return self.norm(torch.cat(halves, 1))


def shake(first: Tensor, second: Tensor, training: bool) -> Tensor:
    """``a first + (1 - a) second``, shapes [B, C, H, W]; a = 1/2 in evaluation.

    In training a is uniform in [0, 1] per image forward, and another one, as independent, backward ("S-S-I").
    """
    if not training:
        return (first + second) / 2
    batch = len(first) * world_size()
    forward, backward = own_rows(torch.rand(batch, 2, 1, 1, 1, dtype=first.dtype, device=first.device)).unbind(1)
    mixed = second + backward * (first - second)
    return mixed + (second + forward * (first - second) - mixed).detach()


class ShakeUnit(nn.Module):
    """``shortcut(x) + shake(branch1(x), branch2(x))``, with a :class:`ShakeShortcut` where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch1 = ShakeBranch(in_channels, out_channels, stride)
        self.branch2 = ShakeBranch(in_channels, out_channels, stride)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ShakeShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + shake(self.branch1(x), self.branch2(x), self.training)


@dataclass(frozen=True)
class ShakeShakeConfig:
    """What :class:`ShakeShake` is built from; stage i has ``stage_units[i]`` units of ``width << i`` channels.

    ``stem_width`` is 16 in the paper. GaterNet's parameter counts need a stem as wide as the first stage.
    """

    name: str
    width: int
    stem_width: int
    classes: int
    stage_units: tuple[int, ...] = (4, 4, 4)
    in_channels: int = 3
    image_size: int = 32


class ShakeShake(Described, nn.Module):
    """Shake-Shake for one task: 3x3 stem with BN, stages of units, ReLU-GAP-linear head.

    The first unit of each later stage halves the map. ``forward``: images [B, in_channels, image_size, image_size] to
    logits [B, classes].

    Raises:
        UserError: the images do not fit.
    """

    def __init__(self, config: ShakeShakeConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.stem_width
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        units: list[nn.Module] = []
        for stage, count in enumerate(config.stage_units):
            width = config.width << stage
            for i in range(count):
                units.append(ShakeUnit(channels, width, 2 if stage > 0 and i == 0 else 1))
                channels = width
        self.units = nn.Sequential(*units)
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, config.classes))
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.config.in_channels, self.config.image_size, next(self.parameters()).dtype)
        return self.head(self.units(self.stem(images)))


ZOO = tuple((ShakeShakeConfig(f"shake-shake-{width}d", width, 16, 10), "CIFAR-10") for width in (64, 96))
