"""What every data set here is: images with a coarse and a fine label, read a batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor, Tensor]


class CoarseFineDataset(Dataset, ABC):
    """Images float32 [C, H, W] with a coarse and a fine label, int64.

    ``batch(indices)`` is the fast path; ``dataset[i]`` is the same for one image.
    """

    coarse_classes: int
    fine_classes: int

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


def augment_flip_crop(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Random mirror images and random crops after zero padding, as DenseNet and ResNet train on CIFAR. [B, C, H, W]."""
    batch, _, height, width = images.shape
    flip = torch.rand(batch, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    shift = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)
    rows = (shift[0][:, None] + torch.arange(height))[:, None, :, None]
    columns = (shift[1][:, None] + torch.arange(width))[:, None, None, :]
    samples = torch.arange(batch)[:, None, None, None]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[samples, channels, rows, columns]
