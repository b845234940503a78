"""LeNet-5 (LeCun et al., Gradient-based learning applied to document recognition, 1998)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .densenet import check_images
from .described import Described
from .errors import UserError


@dataclass(frozen=True)
class LeNetConfig:
    """What :class:`LeNet` is built from; ``image_size`` is at least 16."""

    name: str
    classes: int
    in_channels: int = 1
    image_size: int = 32


class LeNet(Described, nn.Module):
    """LeNet-5: 5x5(6)-tanh-pool-5x5(16)-tanh-pool-linear(120)-tanh-linear(84)-tanh-linear, full connection tables.

    ``forward``: images [B, in_channels, image_size, image_size] to logits [B, classes].

    Raises:
        UserError: the images do not fit, or ``image_size`` is below 16.
    """

    def __init__(self, config: LeNetConfig) -> None:
        super().__init__()
        if config.image_size < 16:
            raise UserError(f"image_size is {config.image_size}; LeNet needs at least 16")
        self.config = config
        side = ((config.image_size - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(config.in_channels, 6, 5), nn.Tanh(), nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(16 * side * side, 120), nn.Tanh(),
            nn.Linear(120, 84), nn.Tanh(),
            nn.Linear(84, config.classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        dtype = next(self.parameters()).dtype
        check_images(images, self.config.in_channels, self.config.image_size, dtype)
        return self.classifier(self.features(images).flatten(1))


ZOO = ((LeNetConfig("lenet", 10), "MNIST"),)
