"""What every data set here is: images with a coarse and a fine label, read a batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
    class_names: Mapping[str, Sequence[str]] = MappingProxyType({})  # by task, "coarse" or "fine", where they have some

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """Indices int64 [B] to images float32 [B, C, H, W], coarse labels int64 [B], fine labels int64 [B]."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random draws of an epoch; the same epoch gives the same images. By default there are none."""

    def sources(self, task: str) -> Tensor | None:
        """Of each image, the number of the original that its label of "coarse" or "fine" was drawn with, int64 [N].

        Images of one original are right or wrong together. None, as by default: each image is an original.
        """
        return None

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        images, coarse, fine = self.batch(torch.tensor([index % len(self)]))
        return images[0], int(coarse[0]), int(fine[0])
