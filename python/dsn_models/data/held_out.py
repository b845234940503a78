"""A part of a data set: the images held out of training for validation, or those that remain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .base import Batch, Clusters, CoarseFineDataset


class Part(CoarseFineDataset):
    """Some images of a data set, by index; all else is the data set's.

    Args:
        whole: of which they are.
        indices: int64 [N].
    """

    def __init__(self, whole: CoarseFineDataset, indices: Tensor) -> None:
        self.whole, self.indices = whole, indices
        self.coarse_classes, self.fine_classes = whole.coarse_classes, whole.fine_classes
        self.class_names, self.mean, self.std, self.notes = whole.class_names, whole.mean, whole.std, whole.notes

    @property
    def clusters(self) -> Clusters | None:
        shared = self.whole.clusters
        return None if shared is None else shared._replace(members=shared.members[self.indices])

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> Batch:
        return self.whole.batch(self.indices[indices])

    def set_epoch(self, epoch: int) -> None:
        self.whole.set_epoch(epoch)

    def unaugmented(self) -> None:
        self.whole.unaugmented()

    def description(self, task: str = "both") -> dict[str, Any]:
        return self.whole.description(task)


def held_out(training: CoarseFineDataset, count: int, train: bool, seed: int = 0) -> Part:
    """The training images without ``count`` of them, drawn at random by ``seed``; or, if not ``train``, those, as they
    are without augmentation. GaterNet, section 4.1, holds out 5,000 of CIFAR's 50,000 so.

    Raises:
        UserError: none would remain, or the data set has no training images of its own to hold out.
    """
    if not 0 < count < len(training):
        raise UserError(f"validation is {count}; expected fewer than the {len(training)} training images, at least one")
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    if not train:
        training.unaugmented()
    return Part(training, order[count:] if train else order[:count].sort().values)
