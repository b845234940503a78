"""What has no weights and is not hot: torch's own kernels on maps [B, pixels, channels], none waits for the host."""

from __future__ import annotations

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


def pool(rows: Tensor, height: int, width: int, window: Window, average: bool) -> Tensor:
    """Average or maximum of windows; pixels outside the map do not count."""
    image = as_image(rows, height, width)
    size, padding = (window.rows, window.columns), (window.pad_rows, window.pad_columns)
    if average:
        small = F.avg_pool2d(image, size, window.stride, padding, count_include_pad=False)
    else:
        small = F.max_pool2d(image, size, window.stride, padding)
    return small.permute(0, 2, 3, 1).flatten(1, 2)


def upsample(rows: Tensor, height: int, width: int, to_height: int, to_width: int) -> Tensor:
    """Bilinear, half-pixel centres."""
    image = F.interpolate(as_image(rows, height, width), (to_height, to_width), mode="bilinear", align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
