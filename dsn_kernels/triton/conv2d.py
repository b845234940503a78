"""A convolution as an implicit GEMM over the samples that a gate opened.

Rows are pixels, sixteen of one sample to a *unit*; columns are filters; the depth is taps times channels. What
surrounds a convolution in the networks is in its prologue (BN-ReLU, 2x2 average pool) and its epilogue (bias, sum with
the destination, activation, channel sums for the next gate). Channels are the innermost dimension of every map.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .routing import select_group, select_samples, words_of
from .support import autotuned, launch, precision, register
from .tiles import UNIT, WIDEST, configs, prune, units_of


@autotuned(
    configs(),
    triton.Config({"UNITS": 8, "BLOCK_N": 64}),
    key=[
        "batch_class",
        "HEIGHT",
        "WIDTH",
        "STRIDE",
        "DILATION",
        "TAPS",
        "ACROSS",
        "GROUPS",
        "DEPTH",
        "FILTERS",
        "PER_SAMPLE",
        "BY_PATTERN",
        "BLOCK_K",
    ],
    changes=["dst", "macs"],
    prune=prune,
)
@triton.jit
def conv2d_kernel(
    src,  # [B, HEIGHT * WIDTH, src_row]
    weight,  # [TAPS * PLACES, GROUPS * COLUMNS]; [TAPS * DEPTH, GROUPS * COLUMNS] if FLAT
    bias,  # float32 [GROUPS * COLUMNS]
    norm,  # float32 [2, GROUPS * PLACES]: scale and shift in front of a ReLU, or None
    constants,  # float32 [SLICES, TAPS, COLUMNS]: what a slice that was skipped gives, or None
    dst,  # [B, out pixels, dst_row]
    sums,  # float32 [B, units, sums_row], or None
    macs,  # int64 [B]
    words,  # int64 [word_count]: the samples that run, or None for all
    taken,  # uint8 [B, SLICES] with rows of taken_row: 0 where a slice was skipped
    inputs,  # int32 [B, ...] with rows of inputs_row: live groups of BLOCK_K channels, or live channels; or None
    input_counts,  # int32 [B], counts_row apart
    filters,  # int32 [B, ...] with rows of filters_row: chosen filters, then the others; or None
    filter_counts,  # int32 [B], counts_row apart
    order,  # int64 [B]: samples whose inputs and filters are the same lie side by side; or None
    offsets,  # int64 [B + 1]: where each of their groups begins, B behind the last
    batch,
    batch_class,  # for the tuner
    word_count,
    src_row,
    dst_row,
    sums_row,
    taken_row,
    inputs_row,
    filters_row,
    counts_row,
    HEIGHT: tl.constexpr,  # of src
    WIDTH: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    OUT_PIXELS: tl.constexpr,
    UNIT_COUNT: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    TAPS: tl.constexpr,
    ACROSS: tl.constexpr,  # taps side by side
    TOP: tl.constexpr,  # rows and columns of zeros before the map
    LEFT: tl.constexpr,
    EDGES: tl.constexpr,  # a tap may lie outside the map
    GROUPS: tl.constexpr,  # of inputs and filters; what follows is of one of them
    DEPTH: tl.constexpr,  # channels, without padding
    PLACES: tl.constexpr,  # with padding
    FILTERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STORED: tl.constexpr,  # columns that dst has
    ACTIVATION: tl.constexpr,
    ACTIVATED: tl.constexpr,  # so many filters of all groups get it
    SLICES: tl.constexpr,
    SLICE_BLOCK: tl.constexpr,
    FIRST_CHANNELS: tl.constexpr,  # live whatever the gates say; then slices
    FIRST_GROUPS: tl.constexpr,
    SLICE_CHANNELS: tl.constexpr,
    SLICE_GROUPS: tl.constexpr,
    PER_SAMPLE: tl.constexpr,  # a tile is one sample's, which has its own channels or filters
    BY_PATTERN: tl.constexpr,  # or of samples that have the same
    GROUPED: tl.constexpr,
    MASKED: tl.constexpr,  # the last step of the depth is not full
    FLAT: tl.constexpr,  # few channels: a step of the depth spans taps
    POOL: tl.constexpr,  # 2x2 average of the normalised source
    ACCUMULATE: tl.constexpr,
    FINISH_OFF: tl.constexpr,  # filters that are not chosen get the epilogue all the same
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    column0 = tl.program_id(1) * BLOCK_N
    first_filter = 0
    if GROUPS > 1:
        across: tl.constexpr = (FILTERS + BLOCK_N - 1) // BLOCK_N
        product = tl.program_id(1) // across
        column0 = tl.program_id(1) % across * BLOCK_N
        first_filter = product * FILTERS
        src += product * DEPTH
        weight += product * COLUMNS
        bias += product * COLUMNS
        dst += first_filter
        if norm is not None:
            norm += product * PLACES
        if sums is not None:
            sums += first_filter
    if BY_PATTERN:
        own, index, here = select_group(offsets, batch, tl.program_id(0), UNIT_COUNT, UNITS)
        if own < 0:
            return
        unit = index % UNIT_COUNT
        place = index // UNIT_COUNT
        sample = tl.load(order + own + place, mask=place < here, other=-1).to(tl.int32)
        own = tl.load(order + own).to(tl.int32)
        if words is not None:
            word = tl.load(words + tl.maximum(sample, 0) // 64)
            sample = tl.where(((word >> (sample % 64).to(tl.int64)) & 1) != 0, sample, -1)
        if tl.max(sample, 0) < 0:
            return
    elif PER_SAMPLE:
        tiles: tl.constexpr = (UNIT_COUNT + UNITS - 1) // UNITS
        place = tl.program_id(0) // tiles
        own = tl.max(select_samples(words, word_count, batch, tl.full([1], 0, tl.int32) + place), 0)
        if own < 0:
            return
        unit = tl.program_id(0) % tiles * UNITS + tl.arange(0, UNITS)
        sample = tl.full([UNITS], 0, tl.int32) + own
    else:
        own = 0
        index = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
        unit = index % UNIT_COUNT
        sample = select_samples(words, word_count, batch, index // UNIT_COUNT)
        if tl.max(sample, 0) < 0:
            return
    row_sample = tl.reshape(tl.broadcast_to(sample[:, None], (UNITS, 16)), (UNITS * 16,))
    row_unit = tl.reshape(tl.broadcast_to(unit[:, None], (UNITS, 16)), (UNITS * 16,))
    pixel = row_unit * 16 + tl.arange(0, UNITS * 16) % 16
    valid = (row_sample >= 0) & (pixel < OUT_PIXELS)
    y = pixel // OUT_WIDTH * STRIDE - TOP
    x = pixel % OUT_WIDTH * STRIDE - LEFT
    rows = src + row_sample.to(tl.int64) * (HEIGHT * WIDTH) * src_row

    n = column0 + tl.arange(0, BLOCK_N)
    column = n
    on = n < COLUMNS
    chosen = FILTERS
    if filters is not None:
        chosen = tl.load(filter_counts + own * counts_row)
        if not FINISH_OFF:
            if column0 >= chosen:
                return
        on = n < chosen
        column = tl.load(filters + own.to(tl.int64) * filters_row + n, mask=n < FILTERS, other=0)

    if inputs is None:
        steps = (DEPTH + BLOCK_K - 1) // BLOCK_K
        live = DEPTH
    else:
        count = tl.load(input_counts + own * counts_row)
        own_inputs = inputs + own.to(tl.int64) * inputs_row
        if GROUPED:
            steps = count
            live = FIRST_CHANNELS
            if SLICE_GROUPS > 0:
                live += (count - FIRST_GROUPS) // SLICE_GROUPS * SLICE_CHANNELS
        else:
            steps = (count + BLOCK_K - 1) // BLOCK_K
            live = count
    total = TAPS * steps
    if FLAT:
        total = (TAPS * DEPTH + BLOCK_K - 1) // BLOCK_K
    if filters is not None:
        total = tl.where(column0 < chosen, total, 0)

    acc = tl.zeros([UNITS * 16, BLOCK_N], tl.float32)
    if constants is not None:
        # Zero padding comes behind the ReLU: a constant slice counts where its tap lies inside the map.
        s = tl.arange(0, SLICE_BLOCK)
        open_slice = tl.load(taken + own.to(tl.int64) * taken_row + s, mask=s < SLICES, other=1)
        skipped = (open_slice == 0)[:, None] & (n < COLUMNS)[None, :]
        for tap in range(TAPS):
            per_slice = tl.load(constants + (s[:, None] * TAPS + tap) * COLUMNS + n[None, :], mask=skipped, other=0.0)
            constant = tl.sum(per_slice, 0)
            if EDGES:
                ty = y + tap // ACROSS * DILATION
                tx = x + tap % ACROSS * DILATION
                inside = (ty >= 0) & (ty < HEIGHT) & (tx >= 0) & (tx < WIDTH)
                acc += tl.where(inside[:, None], constant[None, :], 0.0)
            else:
                acc += constant[None, :]

    k = tl.arange(0, BLOCK_K)
    if norm is not None:
        if inputs is not None and not GROUPED:
            # Of one tap: what the channels without data are behind their ReLU.
            for start in range(count, DEPTH, BLOCK_K):
                off = start + k < DEPTH
                channel = tl.load(own_inputs + start + k, mask=off, other=0)
                shift = tl.maximum(tl.load(norm + GROUPS * PLACES + channel, mask=off, other=0.0), 0.0)
                at = channel[:, None] * COLUMNS + column[None, :]
                b = tl.load(weight + at, mask=off[:, None] & on[None, :], other=0.0).to(tl.float32)
                acc += tl.sum(shift[:, None] * b, 0)[None, :]
    for step in range(total):
        if FLAT:
            weight_row = step * BLOCK_K + k
            known = weight_row < TAPS * DEPTH
            channel = weight_row % DEPTH
            taps = weight_row // DEPTH
            sy = y[:, None] + (taps // ACROSS * DILATION)[None, :]
            sx = x[:, None] + (taps % ACROSS * DILATION)[None, :]
        else:
            tap = step // steps
            i = step % steps
            if inputs is None:
                channel = i * BLOCK_K + k
                known = channel < DEPTH
            elif GROUPED:
                channel = tl.multiple_of(tl.load(own_inputs + i) * BLOCK_K, BLOCK_K) + k
                known = k < BLOCK_K
            else:
                known = i * BLOCK_K + k < count
                channel = tl.load(own_inputs + i * BLOCK_K + k, mask=known, other=0)
            weight_row = tap * PLACES + channel
            sy = y[:, None] + tap // ACROSS * DILATION
            sx = x[:, None] + tap % ACROSS * DILATION
        inside = valid[:, None]
        if EDGES:
            inside = inside & (sy >= 0) & (sy < HEIGHT) & (sx >= 0) & (sx < WIDTH)
        if MASKED:
            inside = inside & known[None, :]
        if POOL:
            scale = tl.load(norm + channel, mask=known, other=0.0)
            shift = tl.load(norm + GROUPS * PLACES + channel, mask=known, other=0.0)
            mean = tl.zeros([UNITS * 16, BLOCK_K], tl.float32)
            for quarter in tl.static_range(4):
                at = ((sy + quarter // 2) * WIDTH + sx + quarter % 2) * src_row + channel[None, :]
                value = tl.load(rows[:, None] + at, mask=inside, other=0.0).to(tl.float32)
                mean += tl.maximum(value * scale[None, :] + shift[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)
            a = (mean * 0.25).to(weight.dtype.element_ty)
        else:
            at = (sy * WIDTH + sx) * src_row + channel[None, :]
            a = tl.load(rows[:, None] + at, mask=inside, other=0.0)
            if norm is not None:
                scale = tl.load(norm + channel, mask=known, other=0.0)
                shift = tl.load(norm + GROUPS * PLACES + channel, mask=known, other=0.0)
                value = a.to(tl.float32) * scale[None, :] + shift[None, :]
                value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
                a = tl.where(inside, value, 0.0)
            a = a.to(weight.dtype.element_ty)
        b = tl.load(
            weight + weight_row[:, None] * (GROUPS * COLUMNS) + column[None, :],
            mask=known[:, None] & on[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    acc += tl.load(bias + column, mask=on, other=0.0)[None, :]
    written = n < STORED
    if filters is not None:
        if FINISH_OFF:
            written = n < FILTERS
        else:
            written = on
    stored = valid[:, None] & written[None, :]
    out = dst + (row_sample.to(tl.int64) * OUT_PIXELS + pixel)[:, None] * dst_row + column[None, :]
    if ACCUMULATE:
        acc += tl.load(out, mask=stored, other=0.0).to(tl.float32)
    if ACTIVATION != "none":
        acc = tl.where((first_filter + column < ACTIVATED)[None, :], activate(acc, ACTIVATION), acc)
    tl.store(out, acc.to(dst.dtype.element_ty), mask=stored)
    if sums is not None:
        per_unit = tl.sum(tl.reshape(tl.where(stored, acc, 0.0), (UNITS, 16, BLOCK_N)), 1)
        at = (sample.to(tl.int64) * UNIT_COUNT + unit)[:, None] * sums_row + column[None, :]
        there = (sample >= 0) & (unit < UNIT_COUNT)
        tl.store(sums + at, per_unit, mask=there[:, None] & written[None, :])
    here = tl.minimum(tl.maximum(chosen - column0, 0), BLOCK_N)
    pixels = tl.minimum(tl.maximum(OUT_PIXELS - unit * 16, 0), 16)
    work = pixels.to(tl.int64) * here * live * TAPS
    if PER_SAMPLE and not BY_PATTERN:
        tl.atomic_add(macs + own, tl.sum(work, 0), sem="relaxed")
    else:
        tl.atomic_add(macs + sample, work, mask=(sample >= 0) & (work > 0), sem="relaxed")


def launch_conv2d(
    src: Tensor,
    weight: Tensor,
    bias: Tensor,
    dst: Tensor,
    macs: Tensor,
    *,
    size: tuple[int, int],
    out_size: tuple[int, int],
    window: Sequence[int],
    depth: int,
    filters: int,
    stored: int,
    groups: int = 1,
    norm: Tensor | None = None,
    constants: Tensor | None = None,
    sums: Tensor | None = None,
    words: Tensor | None = None,
    taken: Tensor | None = None,
    inputs: Tensor | None = None,
    input_counts: Tensor | None = None,
    chosen: Tensor | None = None,
    chosen_counts: Tensor | None = None,
    order: Tensor | None = None,
    offsets: Tensor | None = None,
    group: int = 0,
    first_channels: int = 0,
    slice_channels: int = 0,
    activation: str = "none",
    activated: int = 0,
    accumulate: bool = False,
    finish_off: bool = False,
    pool: bool = False,
) -> None:
    """Convolves maps [B, pixels, channels]; arguments as :func:`conv2d`'s."""
    batch = src.shape[0]
    columns, depth, filters, stored = (n // groups for n in (weight.shape[1], depth, filters, stored))
    (height, width), (out_height, out_width) = size, out_size
    rows, across, stride, top, left, dilation = window[:6]
    taps = rows * across
    bottom = (out_height - 1) * stride - top + dilation * (rows - 1) + 1
    right = (out_width - 1) * stride - left + dilation * (across - 1) + 1
    units = units_of(out_height * out_width)
    per_sample = inputs is not None or chosen is not None
    flat = taps > 1 and weight.shape[0] < taps * UNIT  # its channels are not padded
    places = depth if flat else weight.shape[0] // taps
    block_k = group or next((k for k in (64, 32) if depth % k == 0), 16)
    if flat:
        block_k = min(WIDEST, max(UNIT, triton.next_power_of_2(taps * depth)))
    slices = 0 if constants is None else constants.shape[0]
    counts = input_counts if chosen_counts is None else chosen_counts
    if batch == 0:
        return

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        tiles = batch * triton.cdiv(units, meta["UNITS"]) if per_sample else triton.cdiv(batch * units, meta["UNITS"])
        width = filters if chosen is not None else max(filters, stored)
        return tiles, groups * triton.cdiv(width, meta["BLOCK_N"])

    launch(
        conv2d_kernel,
        grid,
        src,
        weight,
        bias,
        norm,
        constants,
        dst,
        sums,
        macs,
        words,
        taken,
        inputs,
        input_counts,
        chosen,
        chosen_counts,
        order,
        offsets,
        batch,
        batch.bit_length(),
        words_of(batch),
        src.stride(1),
        dst.stride(1),
        0 if sums is None else sums.stride(1),
        0 if taken is None else taken.stride(0),
        0 if inputs is None else inputs.stride(0),
        0 if chosen is None else chosen.stride(0),
        0 if counts is None else counts.stride(0),
        HEIGHT=height,
        WIDTH=width,
        OUT_WIDTH=out_width,
        OUT_PIXELS=out_height * out_width,
        UNIT_COUNT=units,
        STRIDE=stride,
        DILATION=dilation,
        TAPS=taps,
        ACROSS=across,
        TOP=top,
        LEFT=left,
        EDGES=min(top, left) < 0 or max(top, left) > 0 or bottom > height or right > width,
        GROUPS=groups,
        DEPTH=depth,
        PLACES=places,
        FILTERS=filters,
        COLUMNS=columns,
        STORED=stored,
        ACTIVATION=activation,
        ACTIVATED=activated or groups * filters,
        SLICES=slices,
        SLICE_BLOCK=triton.next_power_of_2(max(1, slices)),
        FIRST_CHANNELS=first_channels,
        FIRST_GROUPS=0 if not group else triton.cdiv(first_channels, group),
        SLICE_CHANNELS=slice_channels,
        SLICE_GROUPS=0 if not group else triton.cdiv(slice_channels, group),
        PER_SAMPLE=per_sample,
        BY_PATTERN=order is not None,
        GROUPED=group > 0,
        MASKED=not group and (inputs is not None or depth % block_k != 0),
        FLAT=flat,
        POOL=pool,
        ACCUMULATE=accumulate,
        FINISH_OFF=finish_off,
        PRECISION=precision(weight.dtype),
        BLOCK_K=block_k,
    )


@register("conv2d", mutates=["dst", "sums", "macs"])
def conv2d(
    src: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: Tensor | None,
    dst: Tensor,
    sums: Tensor | None,
    macs: Tensor,
    words: Tensor | None,
    inputs: Tensor | None,
    input_counts: Tensor | None,
    chosen: Tensor | None,
    chosen_counts: Tensor | None,
    order: Tensor | None,
    offsets: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    window: Sequence[int],
    depth: int,
    filters: int,
    stored: int,
    groups: int,
    activation: str,
    activated: int,
    accumulate: bool,
    finish_off: bool,
    pool: bool,
) -> None:
    """``dst = activation(conv(relu(s * src + t)) + bias [+ dst])`` for the samples of ``words``; each part but the
    convolution is optional.

    Args:
        src: [B, height * width, channels], the channels innermost.
        weight: [taps * places, groups * columns], tap by tap, of src's dtype; places, those of a group's channels, a
            multiple of 16, or, of several taps and without a norm, below 16 for few channels, whose taps then share the
            steps of the product.
        bias: float32 [groups * columns].
        norm: float32 [2, groups * places], scale s and shift t; of a 1x1 alone where ``inputs`` are given, whose
            other channels then stand for relu(t).
        dst: [B, out pixels, channels], written.
        sums: float32 [B, units of 16 pixels, channels], written: channel sums of what dst got.
        macs: int64 [B], the multiply-accumulates done are added.
        words: int64 [W], bit i of word w: sample 64 w + i runs. None: all.
        inputs, input_counts: int32 [B, depth] and [B], the channels of src that hold data, then the others, for each
            sample.
        chosen, chosen_counts: int32 [B, filters] and [B], the filters that run, then the others, for each sample.
        order, offsets: int64 [B] and [B + 1], as `group_by_patterns` gives them: samples of a group have the same
            inputs and filters, and share tiles. None: each sample has its own.
        size, out_size: height and width of src and of dst.
        window: the first six of :class:`dsn_kernels.graph.Window`; what lies behind the map follows from the sizes.
        depth: channels of src that are read.
        filters: of the convolution; stored: columns that are written, padding included.
        groups: of inputs and filters; several have neither lists nor stored padding.
        activation: one of :data:`dsn_kernels.graph.ACTIVATIONS`; activated: of so many filters, 0: of all.
        accumulate: add what dst holds.
        finish_off: filters that are not chosen get sum and activation all the same.
        pool: a pixel is the mean of 2x2 normalised ones, the window 1x1 of stride 2.
    """
    launch_conv2d(
        src,
        weight,
        bias,
        dst,
        macs,
        norm=norm,
        sums=sums,
        words=words,
        inputs=inputs,
        input_counts=input_counts,
        chosen=chosen,
        chosen_counts=chosen_counts,
        order=order,
        offsets=offsets,
        size=(size[0], size[1]),
        out_size=(out_size[0], out_size[1]),
        window=window,
        depth=depth,
        filters=filters,
        stored=stored,
        groups=groups,
        activation=activation,
        activated=activated,
        accumulate=accumulate,
        finish_off=finish_off,
        pool=pool,
    )
