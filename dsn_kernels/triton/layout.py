"""Where the channels of a map lie: the block's first ones, then a slice for each layer, each in whole groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The depth of a matrix instruction for 16-bit types; every map and matrix is padded to it.
ALIGN = 16


def padded(channels: int, multiple: int = ALIGN) -> int:
    return -(-channels // multiple) * multiple


@dataclass(frozen=True)
class Channels:
    """Channels of a map: ``first``, then ``slices`` of ``width``; both are padded to whole groups."""

    first: int
    slices: int = 0
    width: int = 0

    @property
    def group(self) -> int:
        """Channels that are kept or left out together: one step of a product's depth."""
        return 32 if self.width and self.first % 32 == 0 and self.width % 32 == 0 else ALIGN

    @property
    def total(self) -> int:
        """Without padding."""
        return self.first + self.slices * self.width

    @property
    def first_places(self) -> int:
        return padded(self.first, self.group)

    @property
    def slice_places(self) -> int:
        return padded(self.width, self.group)

    @property
    def places(self) -> int:
        return self.place(self.slices)

    @property
    def first_groups(self) -> int:
        return self.first_places // self.group

    @property
    def groups(self) -> int:
        return self.places // self.group

    def place(self, index: int) -> int:
        """Where slice ``index`` begins."""
        return self.first_places + index * self.slice_places

    def before(self, index: int) -> Channels:
        """What layer ``index`` reads; the places are the same."""
        return Channels(self.first, min(index, self.slices), self.width)

    def spread(self, x: Tensor, dim: int) -> Tensor:
        """The channels of ``x`` along ``dim`` at their places, zeros between."""
        parts = x.split([self.first, *[self.width] * self.slices], dim)
        return torch.cat([pad(part, dim, self.group) for part in parts], dim)

    def gather(self, x: Tensor) -> Tensor:
        """The channels [..., total] of ``x`` [..., places]."""
        parts = [x[..., : self.first]]
        parts += [x[..., self.place(i) : self.place(i) + self.width] for i in range(self.slices)]
        return torch.cat(parts, -1)

    def constants(self, weight: Tensor, shift: Tensor) -> Tensor:
        """What each slice gives where it was skipped: ``relu(shift)`` of its channels times their weights.

        Args:
            weight: [O, total, taps], of who reads the map.
            shift: [total], of its batch norm.

        Returns:
            [slices, taps, columns].
        """
        products = (weight * shift.relu()[:, None])[:, self.first :]
        return pad(products.unflatten(1, (self.slices, self.width)).sum(2).permute(1, 2, 0), 2)


def pad(x: Tensor, dim: int, multiple: int = ALIGN) -> Tensor:
    """``x`` with zeros up to a multiple of entries along ``dim``."""
    shape = list(x.shape)
    shape[dim] = padded(shape[dim], multiple) - shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim) if shape[dim] else x
