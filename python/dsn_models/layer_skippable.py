"""Layer-Skippable Inference Network (Jiang et al., IEEE Transactions on Image Processing, 2020).

A dual skipping network with three additions. Its abstract names them, and a repository with code that we could not
obtain: **the forms here are our reading.** Each can be switched off, which leaves a dual skipping network.

- *top-down feedback*: the coarse branch helps the fine one. Read as the guide of dual skipping networks
  (``config.guide``).
- *feature-wise affine transformation that encodes the selected path*: :class:`PathHead` (``config.path_affine``).
- *ranking-based loss of the gates*: ``dsn_models.training.losses.ranking_loss`` (``lsn.ranking`` in the recipe).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .densenet import Head
from .dual_skipping import Branch, DualSkippingConfig, DualSkippingNetwork


class PathHead(Head):
    """A head whose features are scaled and shifted by the path through the branch. Our reading of the paper's abstract.

    With f the pooled features [B, C] and g the branch's gates [B, L] (0 or 1, or the training multipliers):
    ``(gamma, beta) = W g + b`` with W [2C, L]; the classifier reads ``(1 + gamma) f + beta``. W and b begin at zero, so
    that training begins with the plain head. ``forward(x, path=None)``: no path means that every layer ran.
    """

    def __init__(self, channels: int, layers: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.path = nn.Linear(layers, 2 * channels)
        nn.init.zeros_(self.path.weight)
        nn.init.zeros_(self.path.bias)

    def forward(self, x: Tensor, path: Tensor | None = None) -> Tensor:
        if path is None:
            path = torch.ones(x.shape[0], self.path.in_features, dtype=x.dtype, device=x.device)
        gamma, beta = self.path(path).chunk(2, 1)
        return self.classifier((1 + gamma) * self.features(x) + beta)


class PathBranch(Branch):
    """A branch that ends in a :class:`PathHead`."""

    def make_head(self, classes: int) -> Head:
        return PathHead(self.channels, self.num_layers, classes)

    def classify(self, x: Tensor, path: Tensor) -> Tensor:
        return self.head(x, path)


@dataclass(frozen=True)
class LayerSkippableConfig(DualSkippingConfig):
    """What :class:`LayerSkippableNetwork` is built from: as for dual skipping networks, and

    Attributes:
        path_affine: the heads are :class:`PathHead`.
    """

    path_affine: bool = True


class LayerSkippableNetwork(DualSkippingNetwork):
    """Called as :class:`DualSkippingNetwork`, of which it is one with the additions above."""

    config: LayerSkippableConfig

    def __init__(self, config: LayerSkippableConfig) -> None:
        if config.path_affine:
            self.branch_type = PathBranch
        super().__init__(config)


ZOO = (
    (
        LayerSkippableConfig(
            "lsn-navon", 6, (3, 3, 3, 3), bottleneck=False, classes=(10, 10), in_channels=1, image_size=64
        ),
        "sb-MNIST",
    ),
    (LayerSkippableConfig("lsn-concat-bc-100", 12, (16, 16, 16), bottleneck=True, compression=0.5), "CIFAR-100"),
)
