"""Random changes to training images. kornia makes them; what happens to an image is drawn from its index."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..errors import UserError


def _kornia() -> ModuleType:
    try:
        import kornia.augmentation
    except ImportError as error:
        raise UserError(f"augmentation needs kornia ({error}); pip install 'dsn-kernels[train]'") from error
    return kornia.augmentation


class _Drawn:
    """What kornia draws from torch's generator is drawn from ``seed``, epoch and index instead, and torch's is left as
    it was: the order of reading, an interruption or several processes change nothing."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draws anew for an epoch."""
        self.epoch = epoch

    def _seed(self, index: int) -> None:
        mixed = self.seed * 0x9E3779B1 + self.epoch * 0x85EBCA77 + index * 0xC2B2AE3D  # odd: no two indices collide
        torch.manual_seed(mixed % 2**32)


class RandomFlipCrop(_Drawn):
    """Random mirror images and random crops after zero padding, as DenseNet and ResNet train on CIFAR.

    Args:
        images: how many the data set has.
        image_size: of the images and of the crops, squares, in pixels.
        padding: pixels on each side.
        seed: of all draws.

    Raises:
        UserError: kornia is not installed.
    """

    def __init__(self, images: int, image_size: int, padding: int, seed: int) -> None:
        kornia = _kornia()
        crop = kornia.RandomCrop((image_size, image_size), padding=padding, cropping_mode="slice")
        self.change = kornia.ImageSequential(kornia.RandomHorizontalFlip(), crop)
        self.shape = torch.Size((images, 1, image_size, image_size))
        super().__init__(seed)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        with torch.random.fork_rng(devices=[]):
            self._seed(0)
            self.draws = self.change.forward_parameters(self.shape)

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:  # [B, C, H, W], [B] -> [B, C, H, W]
        shape = {"forward_input_shape": torch.tensor(images.shape)}
        chosen = [
            draw._replace(data={key: value[indices] for key, value in draw.data.items() if key not in shape} | shape)
            for draw in self.draws
        ]
        return self.change(images, params=chosen)


class RandomScaleCrop(_Drawn):
    """Random mirror images of random crops of random scale, as ResNet and GUNN train on ImageNet.

    A crop has a fraction in [0.08, 1] of the image's area and an aspect ratio in [3/4, 4/3], and is resized to a
    square. With ``colour``, brightness, contrast and saturation are multiplied by factors in [0.6, 1.4].

    Args:
        image_size: of the square, in pixels.
        colour: whether colours change too.
        seed: of all draws.

    Raises:
        UserError: kornia is not installed.
    """

    def __init__(self, image_size: int, colour: bool, seed: int) -> None:
        kornia = _kornia()
        size = (image_size, image_size)
        changes = [kornia.RandomResizedCrop(size, (0.08, 1.0), (3 / 4, 4 / 3), cropping_mode="slice")]
        if colour:
            changes.append(kornia.ColorJitter(0.4, 0.4, 0.4, p=1.0))
        self.change = kornia.ImageSequential(*changes, kornia.RandomHorizontalFlip())
        super().__init__(seed)

    def __call__(self, image: Tensor, index: int) -> Tensor:  # [3, H, W] in [0, 1] -> [3, image_size, image_size]
        with torch.random.fork_rng(devices=[]):
            self._seed(index)
            return self.change(image[None])[0]
