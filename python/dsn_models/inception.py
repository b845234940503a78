"""Inception-v4 (Szegedy et al., https://arxiv.org/abs/1602.07261), section 3.1 and its figures 3 to 9."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .densenet import check_images, init_weights
from .described import Described


class ConvNorm(nn.Module):
    """Convolution-BN-ReLU; padding keeps the size, unless ``valid``. [B, C, H, W] to [B, out_channels, H', W']."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | tuple[int, int], stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid else (height // 2, width // 2)
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride=stride, padding=padding, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Branches(nn.Module):
    """``cat([branch(x) for each branch], 1)``. [B, in_channels, H, W] to [B, C, H', W'].

    A branch ends in a :class:`ConvNorm`, in other :class:`Branches`, or is a pool.
    """

    def __init__(self, in_channels: int, *branches: nn.Module) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.branches = nn.ModuleList(branches)

    def parts(self) -> list[tuple[str | None, int]]:
        """Of each part of the concatenation, in order: path of the last :class:`ConvNorm` (None, a pool), channels."""
        parts: list[tuple[str | None, int]] = []
        for i, branch in enumerate(self.branches):
            path, last = f"branches.{i}", branch
            if isinstance(branch, nn.Sequential):
                path, last = f"{path}.{len(branch) - 1}", branch[-1]
            if isinstance(last, Branches):
                parts += [(f"{path}.{inner}", channels) for inner, channels in last.parts()]
            elif isinstance(last, ConvNorm):
                parts.append((path, last.conv.out_channels))
            else:
                parts.append((None, self.in_channels))
        return parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


Layer = tuple[int, int | tuple[int, int]]


def _chain(in_channels: int, *layers: Layer, then: nn.Module | None = None) -> nn.Sequential:
    """Convolutions (out_channels, kernel) of stride 1 that keep the size, one after the other."""
    modules: list[nn.Module] = []
    for out_channels, kernel in layers:
        modules.append(ConvNorm(in_channels, out_channels, kernel))
        in_channels = out_channels
    return nn.Sequential(*modules, *([] if then is None else [then]))


def _pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return nn.Sequential(pool, ConvNorm(in_channels, out_channels, 1))


def _halving(in_channels: int, out_channels: int) -> ConvNorm:
    return ConvNorm(in_channels, out_channels, 3, stride=2, valid=True)


def make_inception_stem(in_channels: int) -> nn.Sequential:
    """Figure 3: images of 299 x 299 to [B, 384, 35, 35]; the three concatenations have 160, 192 and 384 channels."""
    return nn.Sequential(
        _halving(in_channels, 32),
        ConvNorm(32, 32, 3, valid=True),
        ConvNorm(32, 64, 3),
        Branches(64, nn.MaxPool2d(3, stride=2), _halving(64, 96)),
        Branches(
            160,
            _chain(160, (64, 1), then=ConvNorm(64, 96, 3, valid=True)),
            _chain(160, (64, 1), (64, (1, 7)), (64, (7, 1)), then=ConvNorm(64, 96, 3, valid=True)),
        ),
        Branches(192, _halving(192, 192), nn.MaxPool2d(3, stride=2)),
    )


def make_inception_a() -> Branches:
    """Figure 4: [B, 384, H, W] to the same shape."""
    return Branches(
        384,
        _chain(384, (96, 1)),
        _chain(384, (64, 1), (96, 3)),
        _chain(384, (64, 1), (96, 3), (96, 3)),
        _pooled(384, 96),
    )


def make_reduction_a() -> Branches:
    """Figure 7 with k, l, m, n = 192, 224, 256, 384: [B, 384, H, W] to [B, 1024, H', W'], half the size."""
    return Branches(
        384,
        _halving(384, 384),
        _chain(384, (192, 1), (224, 3), then=_halving(224, 256)),
        nn.MaxPool2d(3, stride=2),
    )


def make_inception_b() -> Branches:
    """Figure 5: [B, 1024, H, W] to the same shape."""
    return Branches(
        1024,
        _chain(1024, (384, 1)),
        _chain(1024, (192, 1), (224, (1, 7)), (256, (7, 1))),
        _chain(1024, (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
        _pooled(1024, 128),
    )


def make_reduction_b() -> Branches:
    """Figure 8: [B, 1024, H, W] to [B, 1536, H', W'], half the size."""
    return Branches(
        1024,
        _chain(1024, (192, 1), then=_halving(192, 192)),
        _chain(1024, (256, 1), (256, (1, 7)), (320, (7, 1)), then=_halving(320, 320)),
        nn.MaxPool2d(3, stride=2),
    )


def make_inception_c() -> Branches:
    """Figure 6: [B, 1536, H, W] to the same shape."""

    def ends(channels: int) -> Branches:
        return Branches(channels, ConvNorm(channels, 256, (1, 3)), ConvNorm(channels, 256, (3, 1)))

    return Branches(
        1536,
        _chain(1536, (256, 1)),
        _chain(1536, (384, 1), then=ends(384)),
        _chain(1536, (384, 1), (448, (3, 1)), (512, (1, 3)), then=ends(512)),
        _pooled(1536, 256),
    )


@dataclass(frozen=True)
class InceptionConfig:
    """What :class:`InceptionV4` is built from; ``blocks`` are the counts of Inception-A, -B and -C."""

    name: str
    classes: int
    blocks: tuple[int, int, int] = (4, 7, 3)
    dropout: float = 0.2
    in_channels: int = 3
    image_size: int = 299


class InceptionV4(Described, nn.Module):
    """Inception-v4 for one task: stem, 4 x A, reduction, 7 x B, reduction, 3 x C, GAP-dropout-linear head.

    ``forward``: images [B, in_channels, image_size, image_size] to logits [B, classes].

    Raises:
        UserError: the images do not fit.
    """

    def __init__(self, config: InceptionConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c = config.blocks
        self.stem = make_inception_stem(config.in_channels)
        self.units = nn.Sequential(
            *(make_inception_a() for _ in range(a)),
            make_reduction_a(),
            *(make_inception_b() for _ in range(b)),
            make_reduction_b(),
            *(make_inception_c() for _ in range(c)),
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(1536, config.classes)
        )
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.config.in_channels, self.config.image_size, next(self.parameters()).dtype)
        return self.head(self.units(self.stem(images)))


ZOO = ((InceptionConfig("inception-v4", 1000), "ImageNet"),)
