"""Images in files of their own, each with its fine class: what folders and published lists of images have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from .augmentation import RandomFlipCrop, RandomScaleCrop
from .base import Batch, CoarseFineDataset
from .images import read_image

Augment = Literal["shift", "scale", "scale-colour"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as its pre-trained weights expect


class ListedImages(CoarseFineDataset):
    """Images float32 [3, image_size, image_size], normalised by channel, as ImageNet if not said.

    :func:`dsn_models.data.images.read_image` reads them. The shorter side is resized to ``resize``, then the centre of
    ``image_size`` is cut out: 256 and 224 are the usual evaluation on ImageNet. Training images are mirrored at random;
    ``augment`` says whether they are shifted by an eighth of their size (``"shift"``) or cut out at a random scale
    instead (``"scale"``), their colours changing too (``"scale-colour"``).

    Args:
        files: path and fine label of each image.
        coarse_of: int64 [fine classes], the coarse class of each.
        image_size: pixels.
        train: augment.
        augment: how.
        resize: pixels of the shorter side, ``image_size`` if not given; or ``"square"``: both sides become
            ``image_size`` whatever their ratio was.
        mean, std: normalisation by channel, of pixels in [0, 1].
        seed: of the augmentation.

    Raises:
        UserError: ``augment`` or ``resize`` is none of these, kornia, which augments, is not installed, or (on reading)
            an image is damaged.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        coarse_of: Tensor,
        image_size: int,
        train: bool,
        *,
        augment: Augment = "shift",
        resize: int | str | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
    ) -> None:
        if augment not in get_args(Augment):
            raise UserError(f"augment is {augment!r}; expected one of {', '.join(get_args(Augment))}")
        number = isinstance(resize, int) and not isinstance(resize, bool) and resize >= image_size
        if not (number or resize is None or resize == "square"):
            raise UserError(f"resize is {resize!r}; expected 'square', or {image_size} pixels or more, the image_size")
        self._normalise(mean, std, 3)
        self.files, self.coarse_of = list(files), coarse_of
        self.image_size, self.resize = image_size, resize
        shifted, scaled = train and augment == "shift", train and augment != "shift"
        self.shift = RandomFlipCrop(len(self.files), image_size, image_size // 8, seed) if shifted else None
        self.scale = RandomScaleCrop(image_size, augment == "scale-colour", seed) if scaled else None

    def unaugmented(self) -> None:
        self.shift = self.scale = None

    def set_epoch(self, epoch: int) -> None:
        for augment in (self.shift, self.scale):
            if augment is not None:
                augment.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def _cut(self, image: Image.Image) -> Image.Image:
        size = (self.image_size, self.image_size)
        if self.resize is None:
            return ImageOps.fit(image, size)
        if self.resize == "square":
            return image.resize(size, Image.Resampling.BILINEAR)
        ratio = int(self.resize) / min(image.size)
        width, height = (max(round(side * ratio), int(self.resize)) for side in image.size)
        left, top = (width - self.image_size) // 2, (height - self.image_size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + self.image_size, top + self.image_size))

    def _read(self, path: Path, index: int) -> Tensor:
        image = read_image(path)
        if self.scale is None:
            image = self._cut(image)
        pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 255
        return pixels if self.scale is None else self.scale(pixels, index)

    def batch(self, indices: Tensor) -> Batch:
        chosen = [self.files[i] for i in indices.tolist()]
        images = torch.empty(len(chosen), 3, self.image_size, self.image_size)
        for i, (index, (path, _)) in enumerate(zip(indices.tolist(), chosen, strict=True)):
            images[i] = self._read(path, index)
        images = (images - self.mean) / self.std
        if self.shift is not None:
            images = self.shift(images, indices)
        fine = torch.tensor([label for _, label in chosen], dtype=torch.int64)
        return images, self.coarse_of[fine], fine
