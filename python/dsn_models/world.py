"""What a checkpoint says of the images that its network takes and of the classes that it tells apart."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

_SLACK = 0.05  # of the range of pixels, by which resizing may overshoot


class Preprocess:
    """``model.preprocess(image)``: a picture to what the network takes, float32 [C, H, W].

    The image becomes RGB, or grey where the network has one channel. Its shorter side is resized to ``resize``, the
    centre of ``size`` is cut out, and pixels in [0, 1] become ``(pixel - mean) / std``.

    Args:
        size: pixels.
        channels: 1 or 3.
        mean, std: by channel.
        resize: pixels of the shorter side; ``size`` if not given; "square": both sides become ``size``.

    Raises:
        UserError: (when called) the image cannot be read.

    >>> from PIL import Image
    >>> preprocess = Preprocess(4, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> preprocess(Image.new("RGB", (6, 8), "white"))[0, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        size: int,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | str | None = None,
    ) -> None:
        self.size, self.channels, self.resize = size, channels, resize
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, image: Image.Image | str | Path) -> Tensor:
        import numpy as np

        from .data.images import read_image, to_rgb

        picture = read_image(image) if isinstance(image, str | Path) else to_rgb(image)
        picture = self._cut(picture)
        if self.channels == 1:
            picture = picture.convert("L")
        pixels = torch.from_numpy(np.array(picture, np.float32)) / 255
        pixels = pixels[None] if self.channels == 1 else pixels.permute(2, 0, 1)
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _cut(self, image: Image.Image) -> Image.Image:
        from PIL import Image, ImageOps

        if self.resize == "square":
            return image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.resize is None:
            return ImageOps.fit(image, (self.size, self.size))
        ratio = int(self.resize) / min(image.size)
        width, height = (max(round(side * ratio), int(self.resize)) for side in image.size)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + self.size, top + self.size))

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value that a pixel becomes."""
        low = min(-m / s for m, s in zip(self.mean, self.std, strict=True))
        return low, max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))

    def warn(self, images: Tensor) -> None:
        """Warns of images whose values are not those of normalised pixels."""
        if not images.numel() or images.is_meta:
            return
        low, high = images.amin().item(), images.amax().item()
        least, most = self.range
        slack = _SLACK * (most - least)
        if high > 10 * most:
            what = "look like pixels of 0 to 255"
        elif least < -0.5 and most > 1.2 and low >= 0 and high <= 1:
            what = "look like pixels of 0 to 1 that were not normalised"
        elif low < least - slack or high > most + slack:
            what = "are beyond those of normalised pixels; they may have been normalised twice"
        else:
            return
        warnings.warn(
            f"images hold values from {low:.3g} to {high:.3g}, which {what}; this network takes {least:.3g} to "
            f"{most:.3g}: (pixel - mean) / std, as model.preprocess makes it",
            stacklevel=5,
        )


def preprocess_of(config: Any, metadata: Mapping[str, Any]) -> Preprocess | None:
    """What a checkpoint's metadata say of its images; None where they do not say how those are normalised."""
    data, recipe = (_table(metadata, key) for key in ("data", "recipe"))
    section = _table(recipe, "data")
    options = _table(section, "options")
    if str(section.get("kind")).startswith("navon"):  # whose pixels are as they are, where nothing else is said
        options = {"mean": [0.0] * config.in_channels, "std": [1.0] * config.in_channels, **options}
    mean, std = (data.get(key, options.get(key)) for key in ("mean", "std"))
    fits = all(isinstance(values, list) and len(values) == config.in_channels for values in (mean, std))
    if not fits or config.in_channels not in (1, 3):
        return None
    resize = data.get("resize", options.get("resize"))
    return Preprocess(config.image_size, config.in_channels, mean, std, resize)


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}


def class_names_of(config: Any, metadata: Mapping[str, Any]) -> Any:
    """The names of the classes by their number; of two tasks ``{"coarse": names, "fine": names}``. None: not said."""
    named = _table(_table(metadata, "data"), "classes")
    if isinstance(config.classes, tuple):
        counts = dict(zip(("coarse", "fine"), config.classes, strict=True))
        fit = all(isinstance(named.get(task), list) and len(named[task]) == n for task, n in counts.items())
        return {task: [*named[task]] for task in counts} if fit else None
    return next(
        ([*names] for names in named.values() if isinstance(names, list) and len(names) == config.classes), None
    )


def attach(model: Any, metadata: Mapping[str, Any]) -> None:
    """Gives a loaded network ``class_names`` and ``preprocess``."""
    model.class_names = class_names_of(model.config, metadata)
    model.preprocess = preprocess_of(model.config, metadata)


def hand_on(model: Any, fast: Any) -> None:
    """The same, of a network, to what was made of it."""
    for name in ("class_names", "preprocess"):
        if name in vars(model):
            setattr(fast, name, getattr(model, name))


def check_range(network: Any, images: Tensor) -> None:
    """Warns of images that were not made as a network takes them, of the first that it is called with."""
    if torch.compiler.is_compiling():
        return
    made = vars(network).get("preprocess")
    if made is not None and not vars(network).get("called", False):
        network.called = True
        made.warn(images)
