"""A folder of images, one sub-folder per fine class, with a map from fine to coarse classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError
from .augmentation import RandomFlipCrop, RandomScaleCrop
from .base import Batch, CoarseFineDataset

Augment = Literal["shift", "scale", "scale-colour"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as its pre-trained weights expect


def read_coarse_map(path: str | Path) -> dict[str, str]:
    """A JSON object that gives each fine class's folder name its coarse class's name.

    Raises:
        UserError: the file is missing or is no such object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read ({error}); expected JSON such as {{"sparrow": "bird"}}') from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise UserError(f'{path} is no coarse-label map; expected JSON such as {{"sparrow": "bird"}}')
    return content


class ImageFolder(CoarseFineDataset):
    """Images of ``root/CLASS/*``, float32 [3, image_size, image_size], normalised as for ImageNet.

    The shorter side is resized to ``image_size``, then the centre is cut out. Training images are mirrored at
    random; ``augment`` says whether they are shifted by an eighth of their size (``"shift"``) or cut out at a random
    scale instead (``"scale"``), their colours changing too (``"scale-colour"``). Classes are numbered in the order of
    their names.

    Args:
        root: one sub-folder per fine class.
        coarse_map: fine class name to coarse class name, or the JSON file that holds it.
        image_size: pixels.
        train: augment.
        augment: how.

    Raises:
        UserError: ``augment`` is none of these or kornia, which does it, is not installed, there is no image, a class
            is missing from the map, or (on reading) an image is damaged.
    """

    def __init__(
        self,
        root: str | Path,
        coarse_map: dict[str, str] | str | Path,
        image_size: int,
        train: bool,
        *,
        augment: Augment = "shift",
        seed: int = 0,
    ) -> None:
        if augment not in get_args(Augment):
            raise UserError(f"augment is {augment!r}; expected one of {', '.join(get_args(Augment))}")
        root = Path(root)
        if not isinstance(coarse_map, dict):
            coarse_map = read_coarse_map(coarse_map)
        classes = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        self.files = [
            (path, fine)
            for fine, name in enumerate(classes)
            for path in sorted((root / name).iterdir())
            if path.suffix.lower() in _SUFFIXES
        ]
        if not self.files:
            raise UserError(f"no image in {root}; expected sub-folders of images, one per fine class")
        unknown = [name for name in classes if name not in coarse_map]
        if unknown:
            raise UserError(f"class {unknown[0]!r} of {root} is not in the coarse-label map; add it")
        coarse_names = sorted({coarse_map[name] for name in classes})
        self.coarse_of = torch.tensor([coarse_names.index(coarse_map[name]) for name in classes])
        self.coarse_classes, self.fine_classes = len(coarse_names), len(classes)
        self.class_names = {"coarse": coarse_names, "fine": classes}
        self.image_size = image_size
        shifted, scaled = train and augment == "shift", train and augment != "shift"
        self.shift = RandomFlipCrop(len(self.files), image_size, image_size // 8, seed) if shifted else None
        self.scale = RandomScaleCrop(image_size, augment == "scale-colour", seed) if scaled else None

    def set_epoch(self, epoch: int) -> None:
        for augment in (self.shift, self.scale):
            if augment is not None:
                augment.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def _read(self, path: Path, index: int) -> Tensor:
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
                if self.scale is None:
                    image = ImageOps.fit(image, (self.image_size, self.image_size))
        except OSError as error:
            raise UserError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
        pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1) / 255
        return pixels if self.scale is None else self.scale(pixels, index)

    def batch(self, indices: Tensor) -> Batch:
        chosen = [self.files[i] for i in indices.tolist()]
        images = torch.empty(len(chosen), 3, self.image_size, self.image_size)
        for i, (index, (path, _)) in enumerate(zip(indices.tolist(), chosen, strict=True)):
            images[i] = self._read(path, index)
        images = (images - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
        if self.shift is not None:
            images = self.shift(images, indices)
        fine = torch.tensor([label for _, label in chosen], dtype=torch.int64)
        return images, self.coarse_of[fine], fine
