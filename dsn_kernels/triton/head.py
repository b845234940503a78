"""Classifiers: BN-ReLU-GAP-linear of a map, a linear map of the pooled features, and features that a path scales."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .activation import activate
from .support import launch, register

_BLOCK_N = 64
_CHANNELS = 16
_PIXELS = 32


@triton.jit
def head_kernel(
    src,  # [B, PIXELS, row]; float32 sums [B, PIXELS units, row] if norm is None
    norm,  # float32 [2, PLACES]: scale and shift in front of a ReLU, or None
    weight,  # float32 [PLACES, COLUMNS]
    bias,  # float32 [COLUMNS]
    constants,  # float32 [SLICES, COLUMNS], or None
    logits,  # float32 [B, CLASSES], a row every `outputs`
    macs,  # int64 [B]
    enabled,  # int64 [W]: samples that are real, or None
    taken,  # uint8 [B, SLICES], a row every `gates`
    inputs,  # int32 [B, ...], live groups, or live channels and then the others; or None
    input_counts,  # int32 [B]
    row,
    outputs,
    gates,
    inputs_row,
    counts_row,
    GROUPED: tl.constexpr,
    DEPTH: tl.constexpr,
    PLACES: tl.constexpr,
    CLASSES: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,  # of src per sample
    MEAN: tl.constexpr,  # pixels of the map
    SLICES: tl.constexpr,
    SLICE_BLOCK: tl.constexpr,
    SLICE_CHANNELS: tl.constexpr,
    SLICE_GROUPS: tl.constexpr,
    FIRST_CHANNELS: tl.constexpr,
    FIRST_GROUPS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    if enabled is not None:
        if ((tl.load(enabled + sample // 64) >> (sample % 64)) & 1) == 0:
            return
    column0 = tl.program_id(1) * BLOCK_N
    n = column0 + tl.arange(0, BLOCK_N)
    acc = tl.load(bias + n, mask=n < COLUMNS, other=0.0)
    if constants is not None:
        s = tl.arange(0, SLICE_BLOCK)
        skipped = (tl.load(taken + sample * gates + s, mask=s < SLICES, other=1) == 0)[:, None] & (n < COLUMNS)[None, :]
        acc += tl.sum(tl.load(constants + s[:, None] * COLUMNS + n[None, :], mask=skipped, other=0.0), 0)
    k = tl.arange(0, BLOCK_K)
    if inputs is None:
        steps = (DEPTH + BLOCK_K - 1) // BLOCK_K
        live = DEPTH
    else:
        count = tl.load(input_counts + sample * counts_row)
        own_inputs = inputs + sample * inputs_row
        if GROUPED:
            steps = count
            live = FIRST_CHANNELS
            if SLICE_GROUPS > 0:
                live += (steps - FIRST_GROUPS) // SLICE_GROUPS * SLICE_CHANNELS
        else:
            steps = (count + BLOCK_K - 1) // BLOCK_K
            live = count
            # What the channels without data are behind their ReLU.
            for start in range(count, DEPTH, BLOCK_K):
                off = start + k < DEPTH
                channel = tl.load(own_inputs + start + k, mask=off, other=0)
                shift = tl.maximum(tl.load(norm + PLACES + channel, mask=off, other=0.0), 0.0)
                at = channel[:, None] * COLUMNS + n[None, :]
                w = tl.load(weight + at, mask=off[:, None] & (n < COLUMNS)[None, :], other=0.0)
                acc += tl.sum(shift[:, None] * w, 0)
    p = tl.arange(0, BLOCK_P)
    for step in range(steps):
        if inputs is None:
            channel = step * BLOCK_K + k
            known = channel < DEPTH
        elif GROUPED:
            channel = tl.load(own_inputs + step) * BLOCK_K + k
            known = k < BLOCK_K
        else:
            known = step * BLOCK_K + k < count
            channel = tl.load(own_inputs + step * BLOCK_K + k, mask=known, other=0)
        total = tl.zeros([BLOCK_K], tl.float32)
        for first in range(0, ROWS, BLOCK_P):
            at = (sample * ROWS + first + p)[:, None] * row + channel[None, :]
            there = (first + p < ROWS)[:, None] & known[None, :]
            value = tl.load(src + at, mask=there, other=0.0).to(tl.float32)
            if norm is not None:
                scale = tl.load(norm + channel, mask=known, other=0.0)
                shift = tl.load(norm + PLACES + channel, mask=known, other=0.0)
                value = value * scale[None, :] + shift[None, :]
                value = tl.where(there, tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0)
            total += tl.sum(value, 0)
        w = tl.load(
            weight + channel[:, None] * COLUMNS + n[None, :], mask=known[:, None] & (n < COLUMNS)[None, :], other=0.0
        )
        acc += tl.sum((total / MEAN)[:, None] * w, 0)
    tl.store(logits + sample * outputs + n, activate(acc, ACTIVATION), mask=n < CLASSES)
    classes = tl.minimum(tl.maximum(CLASSES - column0, 0), BLOCK_N)
    tl.atomic_add(macs + sample, (live * classes).to(tl.int64), sem="relaxed")


@register("head", mutates=["logits", "macs"])
def head(
    src: Tensor,
    norm: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    constants: Tensor | None,
    logits: Tensor,
    macs: Tensor,
    enabled: Tensor | None,
    taken: Tensor | None,
    inputs: Tensor | None,
    input_counts: Tensor | None,
    pixels: int,
    depth: int,
    classes: int,
    group: int,
    first_channels: int,
    slice_channels: int,
    activation: str,
) -> None:
    """``activation(linear(relu(s * x + t).mean(pixels)))``, or ``linear`` of the mean that channel sums give.

    Args:
        src: [B, pixels, places]; without a norm float32 channel sums [B, units, places].
        norm: float32 [2, places], scale s and shift t.
        weight, bias: float32 [places, columns] and [columns], columns a multiple of 16.
        constants: float32 [slices, columns]: what each slice gives that was skipped.
        logits: float32 [B, classes], written.
        macs: int64 [B], added to.
        enabled: int64 [W], the samples for which it runs, or None for all.
        taken: uint8 [B, slices].
        inputs, input_counts: int32 [B, groups] and [B], the groups of channels that hold data, or None for all; with a
            group of 1 channels, and a norm, then the others, which stand for relu(t).
        pixels, depth, classes: of the map, channels of it, outputs.
        group, first_channels, slice_channels: of the channels, as :class:`dsn_kernels.triton.layout.Channels` says.
        activation: one of :data:`dsn_kernels.graph.ACTIVATIONS`.
    """
    batch = src.shape[0]
    if batch == 0:
        return
    slices = 0 if constants is None else constants.shape[0]
    launch(
        head_kernel,
        (batch, triton.cdiv(classes, _BLOCK_N)),
        src,
        norm,
        weight,
        bias,
        constants,
        logits,
        macs,
        enabled,
        taken,
        inputs,
        input_counts,
        src.stride(1),
        logits.stride(0),
        0 if taken is None else taken.stride(0),
        0 if inputs is None else inputs.stride(0),
        0 if input_counts is None else input_counts.stride(0),
        GROUPED=group > 1,
        DEPTH=depth,
        PLACES=weight.shape[0],
        CLASSES=classes,
        COLUMNS=weight.shape[1],
        ROWS=src.shape[1],
        MEAN=pixels,
        SLICES=slices,
        SLICE_BLOCK=triton.next_power_of_2(max(1, slices)),
        SLICE_CHANNELS=slice_channels,
        SLICE_GROUPS=triton.cdiv(slice_channels, group),
        FIRST_CHANNELS=first_channels,
        FIRST_GROUPS=triton.cdiv(first_channels, group),
        ACTIVATION=activation,
        BLOCK_K=group if inputs is not None and group > 1 else _CHANNELS,
        BLOCK_N=_BLOCK_N,
        BLOCK_P=_PIXELS,
    )


def linear(
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    logits: Tensor,
    macs: Tensor,
    enabled: Tensor | None,
    pixels: int,
    channels: int,
    classes: int,
    activation: str = "none",
) -> None:
    """:func:`head` of channel sums over ``pixels`` pixels, float32 [B, units, places], all of which hold data."""
    absent = (None, None, None)
    head(
        sums,
        None,
        weight,
        bias,
        None,
        logits,
        macs,
        enabled,
        *absent,
        pixels,
        channels,
        classes,
        _CHANNELS,
        channels,
        0,
        activation,
    )


@triton.jit
def path_features_kernel(
    src,  # [B, PIXELS, row]
    norm,  # float32 [2, PLACES]: scale and shift in front of a ReLU
    path,  # float32 [LAYERS, 2, PLACES]
    path_bias,  # float32 [2, PLACES]
    features,  # float32 [B, PLACES]
    macs,  # int64 [B]
    enabled,  # int64 [W]: samples that are real, or None
    path_gates,  # uint8 [B, LAYERS], a row every path_row
    taken,  # uint8 [B, slices], a row every taken_row, or None: every channel holds data
    row,
    path_row,
    taken_row,
    channels,
    LAYERS: tl.constexpr,
    PLACES: tl.constexpr,
    PIXELS: tl.constexpr,
    FIRST_GROUPS: tl.constexpr,
    SLICE_GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    if enabled is not None:
        if ((tl.load(enabled + sample // 64) >> (sample % 64)) & 1) == 0:
            return
    channel = group * GROUP + tl.arange(0, GROUP)
    scale = tl.load(norm + channel)
    shift = tl.load(norm + PLACES + channel)
    ran = tl.full([], 1, tl.int1)
    if taken is not None:
        if group >= FIRST_GROUPS:
            ran = tl.load(taken + sample * taken_row + (group - FIRST_GROUPS) // SLICE_GROUPS) != 0
    feature = tl.maximum(shift, 0.0)
    if ran:
        p = tl.arange(0, BLOCK_P)
        total = tl.zeros([GROUP], tl.float32)
        for first in range(0, PIXELS, BLOCK_P):
            there = (first + p < PIXELS)[:, None]
            at = (sample * PIXELS + first + p)[:, None] * row + channel[None, :]
            value = tl.load(src + at, mask=there, other=0.0).to(tl.float32) * scale[None, :] + shift[None, :]
            total += tl.sum(tl.where(there, tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL), 0.0), 0)
        feature = total / PIXELS
    gamma = tl.load(path_bias + channel)
    beta = tl.load(path_bias + PLACES + channel)
    for layer in range(LAYERS):
        if tl.load(path_gates + sample * path_row + layer) != 0:
            gamma += tl.load(path + layer * 2 * PLACES + channel)
            beta += tl.load(path + (layer * 2 + 1) * PLACES + channel)
    tl.store(features + sample * PLACES + channel, (1 + gamma) * feature + beta)
    if group == 0:
        tl.atomic_add(macs + sample, channels, sem="relaxed")


@register("path_features", mutates=["features", "macs"])
def path_features(
    src: Tensor,
    norm: Tensor,
    path: Tensor,
    path_bias: Tensor,
    features: Tensor,
    macs: Tensor,
    enabled: Tensor | None,
    path_gates: Tensor,
    taken: Tensor | None,
    channels: int,
    group: int,
    first_channels: int,
    slice_channels: int,
) -> None:
    """``(1 + gamma) f + beta`` with f = ``relu(s * x + t).mean(pixels)`` and (gamma, beta) = W g + b of the gates g, as
    `dsn_models.layer_skippable.PathHead`; :func:`head` then classifies it.

    Args:
        src: [B, pixels, places].
        norm: float32 [2, places], scale s and shift t; a channel of a slice that was skipped stands for relu(t).
        path, path_bias: float32 [L, 2, places] and [2, places], W and b.
        features: float32 [B, 1, places], written.
        macs: int64 [B], added to.
        enabled: int64 [W], the samples that are real, or None.
        path_gates: uint8 [B, L], the gates of the branch.
        taken: uint8 [B, slices], those of the map's slices; None: every channel holds data.
        channels: of the map.
        group, first_channels, slice_channels: of the channels, as :class:`dsn_kernels.triton.layout.Channels` says.
    """
    batch, places = src.shape[0], path_bias.shape[1]
    if batch == 0:
        return
    launch(
        path_features_kernel,
        (batch, places // group),
        src,
        norm,
        path,
        path_bias,
        features,
        macs,
        enabled,
        path_gates,
        taken,
        src.stride(1),
        path_gates.stride(0),
        0 if taken is None else taken.stride(0),
        channels,
        LAYERS=path.shape[0],
        PLACES=places,
        PIXELS=src.shape[1],
        FIRST_GROUPS=triton.cdiv(first_channels, group),
        SLICE_GROUPS=triton.cdiv(slice_channels, group),
        GROUP=group,
        BLOCK_P=_PIXELS,
    )
