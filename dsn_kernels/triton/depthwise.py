"""A depthwise convolution: each channel by a window of its own."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..graph import nodes
from .activation import activate
from .layout import pad
from .routing import select_samples
from .step import Facts, Run, Step
from .support import launch, register

_PIXELS, _CHANNELS = 16, 64  # of a program's tile


@triton.jit
def depthwise_kernel(
    src,
    weight,
    bias,
    dst,
    macs,
    words,
    word_count,
    batch,
    src_sample,
    src_pixel,
    dst_sample,
    dst_pixel,
    columns,  # of weight
    height,
    width,
    out_height,
    out_width,
    channels,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD_ROWS: tl.constexpr,
    PAD_COLUMNS: tl.constexpr,
    DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    tiles = tl.cdiv(out_height * out_width, PIXELS)
    place = tl.program_id(0) // tiles + tl.zeros([1], tl.int32)
    sample = tl.max(select_samples(words, word_count, batch, place), 0).to(tl.int64)
    if sample >= 0:
        pixel = (tl.program_id(0) % tiles) * PIXELS + tl.arange(0, PIXELS)
        c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
        inside = (pixel < out_height * out_width)[:, None] & (c < channels)[None, :]
        total = tl.zeros([PIXELS, CHANNELS], tl.float32) + tl.load(bias + c, mask=c < channels, other=0)[None, :]
        for tap in range(ROWS * COLUMNS):
            y = pixel // out_width * STRIDE - PAD_ROWS + tap // COLUMNS * DILATION
            x = pixel % out_width * STRIDE - PAD_COLUMNS + tap % COLUMNS * DILATION
            there = inside & ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
            at = sample * src_sample + (y * width + x).to(tl.int64)[:, None] * src_pixel + c[None, :]
            values = tl.load(src + at, mask=there, other=0).to(tl.float32)
            total += tl.load(weight + tap * columns + c, mask=c < channels, other=0)[None, :] * values
        total = activate(total, ACTIVATION)
        at = sample * dst_sample + pixel.to(tl.int64)[:, None] * dst_pixel + c[None, :]
        tl.store(dst + at, total.to(dst.dtype.element_ty), mask=inside)
        tl.atomic_add(macs + sample, tl.sum(tl.sum(inside.to(tl.int64), 1), 0) * (ROWS * COLUMNS), sem="relaxed")


@register("depthwise", mutates=["dst", "macs"])
def depthwise(
    src: Tensor,
    weight: Tensor,
    bias: Tensor,
    dst: Tensor,
    macs: Tensor,
    words: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    window: Sequence[int],
    activation: str,
) -> None:
    """``dst[c] = activation(sum over taps of weight[c] * src[c] + bias[c])`` for the samples of ``words``.

    Args:
        src: [B, height * width, channels], the channels innermost.
        weight, bias: float32 [taps, columns] and [columns], at least as many as channels.
        dst: [B, out pixels, channels], written.
        macs: int64 [B], the multiply-accumulates done are added.
        words: int64 [W], bit i of word w: sample 64 w + i runs. None: all.
        size, out_size: height and width of src and of dst.
        window: the first six of :class:`dsn_kernels.graph.Window`; what lies behind the map follows from the sizes.
        activation: one of :data:`dsn_kernels.graph.ACTIVATIONS`.
    """
    rows, across, stride, top, left, dilation = window
    batch, _, channels = src.shape
    tiles = triton.cdiv(out_size[0] * out_size[1], _PIXELS)
    if not batch:
        return
    launch(
        depthwise_kernel,
        (batch * tiles, triton.cdiv(channels, _CHANNELS)),
        src,
        weight,
        bias,
        dst,
        macs,
        words,
        0 if words is None else len(words),
        batch,
        src.stride(0),
        src.stride(1),
        dst.stride(0),
        dst.stride(1),
        weight.shape[1],
        *size,
        *out_size,
        channels,
        ROWS=rows,
        COLUMNS=across,
        STRIDE=stride,
        PAD_ROWS=top,
        PAD_COLUMNS=left,
        DILATION=dilation,
        ACTIVATION=activation,
        PIXELS=_PIXELS,
        CHANNELS=_CHANNELS,
    )


class Depthwise(Step, serves=[nodes.Depthwise]):
    waits = True
    weight: Tensor
    bias: Tensor

    def __init__(self, node: nodes.Depthwise, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.window, self.activation, self.src_offset = node.window[:6], node.activation, node.src_offset
        self.part = slice(node.out_offset, node.out_offset + node.in_channels)
        self._keep("weight", pad(node.weight.flatten(1).T, 1))
        self._keep("bias", pad(node.bias, 0))

    def forward(self, run: Run) -> None:
        source = self._filled(run, self.src_offset)
        to = run.into(self.dst, self.pool).data[:, :, self.part]
        sizes = run.sizes[self.src], run.sizes[self.dst]
        weights, words = (self.weight, self.bias), self._words(run)
        depthwise(source, *weights, to, run.macs, words, *sizes, self.window, self.activation)
