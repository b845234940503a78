"""What every data set here is: images with a coarse and a fine label, read a batch at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor, Tensor]


class CoarseFineDataset(Dataset, ABC):
    """Images float32 [C, H, W] with a coarse and a fine label, int64.

    ``batch(indices)`` is the fast path; ``dataset[i]`` is the same for one image.
    """

    coarse_classes: int
    fine_classes: int
    class_names: Mapping[str, Sequence[str]] = MappingProxyType({})  # by task, "coarse" or "fine", where they have some

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """Indices int64 [B] to images float32 [B, C, H, W], coarse labels int64 [B], fine labels int64 [B]."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random draws of an epoch; the same epoch gives the same images. By default there are none."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        images, coarse, fine = self.batch(torch.tensor([index % len(self)]))
        return images[0], int(coarse[0]), int(fine[0])


class RandomFlipCrop:
    """Random mirror images and random crops after zero padding, as DenseNet and ResNet train on CIFAR.

    What happens to an image is a function of ``seed``, epoch and its index alone, so that the order of reading, an
    interruption or several processes change nothing.

    Args:
        images: how many the data set has.
        padding: pixels on each side; the crop has the image's own size.
        seed: of all draws.
    """

    def __init__(self, images: int, padding: int, seed: int) -> None:
        self.images, self.padding, self.seed = images, padding, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws anew for an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self.flip = torch.rand(self.images, generator=generator) < 0.5
        self.shift = torch.randint(0, 2 * self.padding + 1, (2, self.images), generator=generator)

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:  # [B, C, H, W], [B] -> [B, C, H, W]
        batch, channels, height, width = images.shape
        images = torch.where(self.flip[indices][:, None, None, None], images.flip(3), images)
        padded = torch.nn.functional.pad(images, (self.padding,) * 4)
        rows, columns = self.shift[:, indices]
        rows = (rows[:, None] + torch.arange(height))[:, None, :, None]
        columns = (columns[:, None] + torch.arange(width))[:, None, None, :]
        samples = torch.arange(batch)[:, None, None, None]
        return padded[samples, torch.arange(channels)[None, :, None, None], rows, columns]


class RandomScaleCrop:
    """Random mirror images of random crops of random scale, as ResNet and GUNN train on ImageNet; Pillow does the work.

    A crop has a fraction in [0.08, 1] of the image's area and an aspect ratio in [3/4, 4/3], and is resized to a
    square. With ``colour``, brightness, contrast and saturation are multiplied by factors in [0.6, 1.4]. What happens
    to an image is a function of ``seed``, epoch and its index alone.

    Args:
        image_size: of the square, in pixels.
        colour: whether colours change too.
        seed: of all draws.
    """

    def __init__(self, image_size: int, colour: bool, seed: int) -> None:
        self.image_size, self.colour, self.seed = image_size, colour, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws anew for an epoch."""
        self.epoch = epoch

    def __call__(self, image: Image.Image, index: int) -> Image.Image:
        mixed = self.seed * 0x9E3779B1 + self.epoch * 0x85EBCA77 + index * 0xC2B2AE3D  # odd: no two indices collide
        generator = torch.Generator().manual_seed(mixed % 2**32)
        area, ratio, left, top, flip, *colours = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
        pixels = image.width * image.height * (0.08 + 0.92 * area)
        stretch = math.exp((2 * ratio - 1) * math.log(4 / 3) / 2)
        width = min(math.sqrt(pixels) * stretch, image.width)
        height = min(math.sqrt(pixels) / stretch, image.height)
        left, top = left * (image.width - width), top * (image.height - height)
        size = (self.image_size, self.image_size)
        image = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        if self.colour:
            kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for kind, value in zip(kinds, colours, strict=True):
                image = kind(image).enhance(0.6 + 0.8 * value)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else image
