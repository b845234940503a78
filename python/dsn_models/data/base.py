"""What every data set here is: images with a coarse and a fine label, read a batch at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError

Batch = tuple[Tensor, Tensor, Tensor]


class Clusters(NamedTuple):
    """What images share, so that they are not independent of one another.

    Attributes:
        what: the plural of what is shared, such as ``"digits"``.
        members: int64 [N, S]; image i is made of the sources ``members[i]``, numbered from 0.
    """

    what: str
    members: Tensor


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Refuses a normalisation that does not fit images.

    Raises:
        UserError: they are not as many finite numbers as the images have channels, those of ``std`` above 0.
    """
    for name, values in (("mean", mean), ("std", std)):
        numbers = isinstance(values, Sequence) and all(isinstance(value, int | float) for value in values)
        finite = numbers and all(math.isfinite(value) and (name == "mean" or value > 0) for value in values)
        if not finite or len(values) != channels:
            wanted = "a finite number" if name == "mean" else "a number above 0"
            raise UserError(
                f"{name} is {values!r}; expected {wanted} for each of the {channels} channels of the images"
            )


class CoarseFineDataset(Dataset, ABC):
    """Images float32 [C, H, W] with a coarse and a fine label, int64.

    ``batch(indices)`` is the fast path; ``dataset[i]`` is the same for one image.

    Attributes:
        coarse_classes, fine_classes: how many there are.
        class_names: by task, "coarse" or "fine", where the classes have names.
        mean, std: float32 [C, 1, 1]; images are ``(pixels - mean) / std`` of pixels in [0, 1].
        clusters: how the images were sampled; None of independent ones.
        notes: one line each on what a user should know of the files that were read, such as what was skipped.
    """

    coarse_classes: int
    fine_classes: int
    class_names: Mapping[str, Sequence[str]] = MappingProxyType({})
    mean: Tensor = torch.zeros(1, 1, 1)
    std: Tensor = torch.ones(1, 1, 1)
    _normalisation: Mapping[str, Sequence[float]] = MappingProxyType({"mean": (0.0,), "std": (1.0,)})
    notes: Sequence[str] = ()

    @property
    def clusters(self) -> Clusters | None:
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """Indices int64 [B] to images float32 [B, C, H, W], coarse labels int64 [B], fine labels int64 [B]."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random draws of an epoch; the same epoch gives the same images. By default there are none."""

    def unaugmented(self) -> None:
        """Gives the images from now on as they are, as those of a test.

        Raises:
            UserError: the images of a training are made, not read, so that none of them can be held out.
        """
        raise UserError("images of this kind are made, not read; none can be held out for validation")

    def description(self, task: str = "both") -> dict[str, Any]:
        """What a checkpoint keeps of the data it was trained on: see ``like`` of ``open_dataset``.

        Args:
            task: whose class names are kept: "coarse", "fine" or "both".
        """
        names = {name: [*own] for name, own in self.class_names.items() if task in ("both", name)}
        return {"classes": names, **{key: [*values] for key, values in self._normalisation.items()}}

    def _normalise(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        """Sets ``mean`` and ``std``, checked."""
        check_normalisation(mean, std, channels)
        self._normalisation = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
        self.mean, self.std = (torch.tensor([*values], dtype=torch.float32)[:, None, None] for values in (mean, std))

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        images, coarse, fine = self.batch(torch.tensor([index % len(self)]))
        return images[0], int(coarse[0]), int(fine[0])
