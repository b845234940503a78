"""What has no weights and is not hot: torch's own kernels on maps [B, pixels, channels], none waits for the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..graph import Window
from .tiles import UNIT


def as_rows(image: Tensor, dtype: torch.dtype, places: int) -> Tensor:
    """[B, C, H, W] to [B, H * W, places], zeros beyond C."""
    rows = image.flatten(2).transpose(1, 2).to(dtype)
    return F.pad(rows, (0, places - rows.shape[2])).contiguous()


def as_image(rows: Tensor, height: int, width: int) -> Tensor:
    """[B, H * W, C] to [B, C, H, W]."""
    return rows.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def unit_sums(rows: Tensor) -> Tensor:
    """Channel sums of each sixteen pixels: [B, pixels, C] to float32 [B, units, C]."""
    whole = F.pad(rows, (0, 0, 0, -rows.shape[1] % UNIT))
    return whole.unflatten(1, (-1, UNIT)).sum(2, dtype=torch.float32)


def subsample(rows: Tensor, height: int, width: int, stride: int, first: int, places: int) -> Tensor:
    """Every ``stride``-th pixel, its channels from ``first`` on, zeros around them."""
    picked = rows.unflatten(1, (height, width))[:, ::stride, ::stride].flatten(1, 2)
    return F.pad(picked, (first, places - first - picked.shape[2]))


def max_pool(rows: Tensor, size: tuple[int, int], out_size: tuple[int, int], window: Window) -> Tensor:
    """Maximum of windows; pixels outside the map do not count."""
    image = _extend(as_image(rows, *size), _margins(size, out_size, window), -torch.inf)
    return _flattened(F.max_pool2d(image, (window.rows, window.columns), window.stride))


def avg_pool(
    rows: Tensor, size: tuple[int, int], out_size: tuple[int, int], window: Window, count_padding: bool
) -> Tensor:
    """Average of windows; of pixels outside the map the window's zeros alone count, and these if ``count_padding``."""
    image = as_image(rows, *size).float()
    counted = image.new_ones(1, 1, *size)
    margins, zeros = _margins(size, out_size, window), (0, 0, 0, 0)
    if count_padding:
        left, top = window.pad_columns, window.pad_rows
        zeros = (left, left + window.more_columns, top, top + window.more_rows)
    beyond = [margin - counts for margin, counts in zip(margins, zeros, strict=True)]
    counted = _extend(_extend(counted, zeros, 1.0), beyond, 0.0)
    sums, counts = (
        F.avg_pool2d(x, (window.rows, window.columns), window.stride, divisor_override=1)
        for x in (_extend(image, margins, 0.0), counted)
    )
    return _flattened(sums / counts).to(rows.dtype)


def _margins(size: tuple[int, int], out_size: tuple[int, int], window: Window) -> tuple[int, int, int, int]:
    """How far the windows reach beyond the map: left, right, above, below; negative: so many pixels are left out."""
    below = (out_size[0] - 1) * window.stride + window.rows - window.pad_rows - size[0]
    right = (out_size[1] - 1) * window.stride + window.columns - window.pad_columns - size[1]
    return window.pad_columns, right, window.pad_rows, below


def _extend(image: Tensor, margins: Sequence[int], value: float) -> Tensor:
    return F.pad(image, list(margins), value=value) if any(margins) else image


def _flattened(image: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H * W, C]."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def upsample(rows: Tensor, height: int, width: int, to_height: int, to_width: int) -> Tensor:
    """Bilinear, half-pixel centres."""
    image = F.interpolate(as_image(rows, height, width), (to_height, to_width), mode="bilinear", align_corners=False)
    return _flattened(image).contiguous()
