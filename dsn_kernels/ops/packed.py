"""Weights packed for the CPU kernels, read back by those who pack them for others."""

from __future__ import annotations

import math

from torch import Tensor

# (name, offset, shape) in floats, size
Layout = tuple[list[tuple[str, int, list[int]]], int]


class Unit:
    """One packed unit of the CPU kernels, by field, without its padding."""

    def __init__(self, weights: Tensor, offset: int, layout: Layout) -> None:
        fields, self.size = layout
        self._fields = {
            name: weights[offset + at : offset + at + math.prod(shape)].reshape(shape) for name, at, shape in fields
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._fields[name]

    def conv(self, name: str, out_channels: int) -> Tensor:
        """[blocks, I, taps, rows] to [O, I, taps]."""
        return self[name].permute(0, 3, 1, 2).flatten(0, 1)[:out_channels]
