"""Navon digits: a big digit drawn with copies of a small one. sb-MNIST, Dual Skipping Networks section 4.

The paper leaves canvas, glyph size and rendering open. Our reading: the big digit is sampled to a grid of cells, the
small digit to a glyph, and each cell shows the glyph as bright as the big digit is there. Both digits are first cropped
to the square around their ink, since a few pixels must carry them. The coarse label is the big digit, the fine label
the small one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError
from .base import Batch, CoarseFineDataset
from .idx import read_mnist

_TEST_FRACTION = 0.2
_OVERSAMPLING = 4
_INK = 32 / 255  # a pixel darker than this does not extend the crop


def _crop_to_ink(digits: Tensor, size: int) -> Tensor:  # [N, H, W] -> [N, size, size]
    """Each digit's ink, centred in the smallest square that holds it, averaged down to ``size`` x ``size``."""
    count, height, width = digits.shape
    ink = digits > _INK
    theta = torch.zeros(count, 2, 3)
    extent = []
    for axis, length in ((1, width), (2, height)):  # x from columns, y from rows
        hit = ink.any(axis)
        first = hit.float().argmax(1)
        last = length - hit.flip(1).float().argmax(1)
        extent.append((first, torch.where(hit.any(1), last, length), length))
    side = torch.maximum(*(last - first for first, last, _ in extent)).float()
    for row, (first, last, length) in enumerate(extent):
        theta[:, row, row] = side / length
        theta[:, row, 2] = (first + last).float() / length - 1
    fine = size * _OVERSAMPLING
    grid = F.affine_grid(theta, [count, 1, fine, fine], align_corners=False)
    return F.avg_pool2d(F.grid_sample(digits[:, None], grid, align_corners=False), _OVERSAMPLING)[:, 0]


def _distort(digits: Tensor, generator: torch.Generator) -> Tensor:  # [N, H, W]
    """A small random rotation (12 degrees), scale (12 %) and shear (0.2) of each digit."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(digits), generator=generator) * 2 - 1) * limit

    angle, shear = uniform(0.21), uniform(0.2)
    zero = torch.zeros(len(digits))
    x = torch.stack([(1 + uniform(0.12)) * angle.cos(), shear - angle.sin(), zero], 1)
    y = torch.stack([angle.sin(), (1 + uniform(0.12)) * angle.cos(), zero], 1)
    grid = F.affine_grid(torch.stack([x, y], 1), [len(digits), 1, *digits.shape[1:]], align_corners=False)
    return F.grid_sample(digits[:, None], grid, align_corners=False)[:, 0]


class NavonDigits(CoarseFineDataset):
    """Images float32 [1, canvas, canvas] in [0, 1] of a big digit made of copies of a small digit.

    Image i of an epoch shows two digits drawn at random, by ``seed`` and epoch alone. Images are made when asked for,
    ``batch`` at a time.

    Args:
        digits: float32 [N, H, W] in [0, 1], white ink on black.
        labels: int64 [N], 0 to 9.
        images: how many images an epoch has.
        canvas, glyph: sizes in pixels; the big digit is ``canvas // glyph`` cells wide.
        shade: cells are as bright as the big digit there; else full or black, split at 0.35.
        distortions: so many distorted copies of each digit join the originals.
        fresh: each epoch draws new pairs; else all epochs show the same images.
        seed: of every random choice.

    Raises:
        UserError: there is no digit, or the sizes do not fit.
    """

    coarse_classes = fine_classes = 10

    def __init__(
        self,
        digits: Tensor,
        labels: Tensor,
        images: int,
        *,
        canvas: int = 64,
        glyph: int = 8,
        shade: bool = True,
        distortions: int = 0,
        fresh: bool = True,
        seed: int = 0,
    ) -> None:
        if len(digits) == 0 or len(digits) != len(labels):
            raise UserError(f"{len(digits)} digits with {len(labels)} labels; expected as many, and at least one")
        if images < 0 or distortions < 0 or glyph < 1 or canvas < glyph or canvas % glyph:
            raise UserError(
                f"images {images}, distortions {distortions}, canvas {canvas}, glyph {glyph}; "
                "expected none negative and a canvas that is a multiple of the glyph"
            )
        self.cells = canvas // glyph
        generator = torch.Generator().manual_seed(seed)
        variants = [digits, *(_distort(digits, generator) for _ in range(distortions))]
        self.glyphs = torch.cat([_crop_to_ink(variant, glyph) for variant in variants])
        self.figures = self.glyphs
        if self.cells != glyph:
            self.figures = torch.cat([_crop_to_ink(variant, self.cells) for variant in variants])
        if not shade:
            self.figures = (self.figures > 0.35).float()
        self.originals, self.labels = len(digits), labels.repeat(1 + distortions)
        self.images, self.seed, self.fresh = images, seed, fresh
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        generator = np.random.default_rng([self.seed, epoch if self.fresh else 0])
        self.pairs = torch.from_numpy(generator.integers(0, len(self.labels), (self.images, 2)))

    def __len__(self) -> int:
        return self.images

    def sources(self, task: str) -> Tensor:
        """The digit, before distortion, that is the task's: the big one of "coarse", the small one of "fine"."""
        return self.pairs[:, 1 if task == "coarse" else 0] % self.originals

    def batch(self, indices: Tensor) -> Batch:
        small, big = self.pairs[indices].unbind(1)
        cells = self.figures[big][:, :, None, :, None] * self.glyphs[small][:, None, :, None, :]
        side = self.cells * self.glyphs.shape[1]
        return cells.reshape(len(indices), 1, side, side), self.labels[big], self.labels[small]


def _split(digits: Tensor, labels: Tensor, train: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Four fifths of the digits for training, the others for testing: a permutation by ``seed`` alone."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(digits)))
    cut = len(digits) - int(len(digits) * _TEST_FRACTION)
    chosen = order[:cut] if train else order[cut:]
    return digits[chosen], labels[chosen]


def _build(digits: Tensor, labels: Tensor, images: int | None, train: bool, options: dict) -> NavonDigits:
    """Distortions are for training; test images do not change from epoch to epoch."""
    if not train:
        options = {**options, "distortions": 0, "fresh": False}
    return NavonDigits(digits, labels, (120_000 if train else 20_000) if images is None else images, **options)


def from_idx(
    folder: str | Path, train: bool, images: int | None = None, *, split_seed: int = 0, **options
) -> NavonDigits:
    """Navon digits from MNIST's IDX files, plain or .gz.

    Training and test images are built from disjoint digits: from the train and the t10k files where both are there,
    else from four fifths and one fifth of the t10k digits, drawn by ``split_seed``.

    Args:
        folder: holds ``t10k-images-idx3-ubyte[.gz]``, its labels, and perhaps the ``train-`` pair.
        images: number of images, 120,000 for training and 20,000 for testing if not given (the paper's).
        options: of :class:`NavonDigits`.

    Raises:
        UserError: files are missing, damaged or cut short.
    """
    test_files = read_mnist(folder, "t10k")
    if test_files is None:
        raise UserError(f"no t10k-images-idx3-ubyte[.gz] in {folder}; expected MNIST in its published IDX files")
    train_files = read_mnist(folder, "train")
    raw, raw_labels = train_files if train and train_files is not None else test_files
    digits, labels = torch.from_numpy(raw.astype(np.float32) / 255), torch.from_numpy(raw_labels.astype(np.int64))
    if train_files is None:
        digits, labels = _split(digits, labels, train, split_seed)
    return _build(digits, labels, images, train, options)


def from_sklearn(train: bool, images: int | None = None, *, split_seed: int = 0, **options) -> NavonDigits:
    """Navon digits from scikit-learn's 1,797 handwritten digits (8 x 8, 17 grey levels).

    1,438 digits make the training images, the other 359 the test images, drawn by ``split_seed``. Arguments as for
    :func:`from_idx`.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits, labels = torch.from_numpy(bunch.images.astype(np.float32) / 16), torch.from_numpy(bunch.target)
    return _build(*_split(digits, labels.long(), train, split_seed), images, train, options)
