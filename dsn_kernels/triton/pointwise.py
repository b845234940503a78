"""What is done to each value by itself, perhaps on an enlarged map."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..graph import nodes
from .activation import activate
from .routing import select_samples
from .step import Facts, Run, Step
from .support import launch, register

_PIXELS, _CHANNELS = 16, 64  # of a program's tile


@triton.jit
def pointwise_kernel(
    src,
    affine,  # float32 [2, channels]: scale and shift, or None
    factor,  # float32 [B, FACTOR_UNITS, ...] with rows of factor_row, or None
    holds,  # uint8 [B, channels] with rows of holds_row: 0 where a channel holds no data; or None
    dst,
    words,
    word_count,
    batch,
    src_sample,
    src_pixel,
    dst_sample,
    dst_pixel,
    factor_row,
    factor_pixels,
    holds_row,
    width,  # of src
    out_width,
    out_pixels,
    channels,
    TIMES: tl.constexpr,
    FACTOR_UNITS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tiles = tl.cdiv(out_pixels, PIXELS)
    place = tl.program_id(0) // tiles + tl.zeros([1], tl.int32)
    sample = tl.max(select_samples(words, word_count, batch, place), 0).to(tl.int64)
    if sample >= 0:
        pixel = (tl.program_id(0) % tiles) * PIXELS + tl.arange(0, PIXELS)
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        known = c < channels
        inside = (pixel < out_pixels)[:, None] & known[None, :]
        near = pixel // out_width // TIMES * width + pixel % out_width // TIMES
        there = inside
        if holds is not None:
            there = inside & (tl.load(holds + sample * holds_row + c, mask=known, other=0) != 0)[None, :]
        at = sample * src_sample + near.to(tl.int64)[:, None] * src_pixel + c[None, :]
        value = tl.load(src + at, mask=there, other=0.0).to(tl.float32)
        if affine is not None:
            scale = tl.load(affine + c, mask=known, other=0.0)
            shift = tl.load(affine + channels + c, mask=known, other=0.0)
            value = value * scale[None, :] + shift[None, :]
        if factor is not None:
            total = tl.zeros([CHANNELS], tl.float32)
            for unit in range(FACTOR_UNITS):
                total += tl.load(factor + (sample * FACTOR_UNITS + unit) * factor_row + c, mask=known, other=0.0)
            value = value * (total / factor_pixels)[None, :]
        out = dst + sample * dst_sample + pixel.to(tl.int64)[:, None] * dst_pixel + c[None, :]
        if ACCUMULATE:
            value += tl.load(out, mask=inside, other=0.0).to(tl.float32)
        tl.store(out, activate(value, ACTIVATION).to(dst.dtype.element_ty), mask=inside)


@register("pointwise", mutates=["dst"])
def pointwise(
    src: Tensor,
    affine: Tensor | None,
    factor: Tensor | None,
    holds: Tensor | None,
    dst: Tensor,
    words: Tensor | None,
    width: int,
    out_width: int,
    times: int,
    factor_pixels: int,
    accumulate: bool,
    activation: str,
) -> None:
    """``dst = activation(factor * (scale * enlarge(src) + shift) [+ dst])`` for the samples of ``words``; each part is
    optional. ``enlarge`` repeats a pixel ``times`` x ``times``.

    Args:
        src: [B, pixels, channels], the channels innermost; without ``times`` it may be dst.
        affine: float32 [2, channels], scale and shift.
        factor: float32 [B, units, at least channels], channel sums of a map of ``factor_pixels``, whose mean it is.
        holds: uint8 [B, channels], 0 where a channel of src holds no data and stands for zeros.
        dst: [B, out pixels, channels], written.
        words: int64 [W], bit i of word w: sample 64 w + i runs. None: all.
        width, out_width: of src and of dst.
        times: a whole factor, 1: as it is.
        accumulate: add what dst holds.
        activation: one of :data:`dsn_kernels.graph.ACTIVATIONS`.
    """
    batch, pixels, channels = dst.shape
    if not batch:
        return
    launch(
        pointwise_kernel,
        (batch * triton.cdiv(pixels, _PIXELS), triton.cdiv(channels, _CHANNELS)),
        src,
        affine,
        factor,
        holds,
        dst,
        words,
        0 if words is None else len(words),
        batch,
        src.stride(0),
        src.stride(1),
        dst.stride(0),
        dst.stride(1),
        0 if factor is None else factor.stride(1),
        factor_pixels,
        0 if holds is None else holds.stride(0),
        width,
        out_width,
        pixels,
        channels,
        TIMES=times,
        FACTOR_UNITS=0 if factor is None else factor.shape[1],
        ACCUMULATE=accumulate,
        ACTIVATION=activation,
        PIXELS=_PIXELS,
        CHANNELS=_CHANNELS,
    )


class Pointwise(Step, serves=[nodes.Pointwise, nodes.Upsample]):
    waits = True
    affine: Tensor | None

    def __init__(self, node: nodes.Pointwise | nodes.Upsample, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.times, self.factor = getattr(node, "stride", 1), getattr(node, "factor", -1)
        self.activation, self.accumulate = node.activation, node.accumulate
        self.read = slice(node.src_offset, node.src_offset + node.in_channels)
        self.part = slice(node.out_offset, node.out_offset + node.in_channels)
        affine = getattr(node, "affine", None)
        if affine is None:
            self.affine = None
        else:
            self._keep("affine", torch.stack(list(affine)))

    def forward(self, run: Run) -> None:
        source, to = run.maps[self.src].data[:, :, self.read], run.into(self.dst, self.pool).data[:, :, self.part]
        widths = run.sizes[self.src][1], run.sizes[self.dst][1]
        factor, pixels = None, 1
        if self.factor >= 0:
            factor, pixels = run.maps[self.factor].sums, run.pixels(self.factor)
        parts, how = (self.affine, factor, run.holds(self.inputs)), (self.accumulate, self.activation)
        pointwise(source, *parts, to, self._words(run), *widths, self.times, pixels, *how)
