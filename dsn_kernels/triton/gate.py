"""Gates: a linear map of the pooled features, decided for every sample, and the words that convolutions read."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .support import launch, register

_BLOCK = 64
# LSTM(10, 10) of a recurrent gate, and the block that holds ten.
EMBEDDING = 10
_WIDE = 16


@triton.jit
def take(taken, score_out, words, forced, threshold, sample, gates, score, always: tl.constexpr):
    """Writes a sample's decision and score and, if its gate opens, its bit."""
    tl.store(score_out + sample * gates, score)
    is_open = tl.full([], 1, tl.int1)
    if not always:
        if forced is not None:
            is_open = tl.load(forced) != 0
        else:
            is_open = score > threshold
    tl.store(taken + sample * gates, is_open.to(tl.uint8))
    bit = tl.full([], 1, tl.int64) << (sample % 64)
    tl.atomic_or(words + sample // 64, bit, mask=is_open, sem="relaxed")


@triton.jit
def gate_kernel(
    pooled,  # float32 [B, OLD + NEW]: of OLD channels on entry
    sums,  # float32 [B, UNIT_COUNT, ...] with rows of sums_row, of the NEW channels behind them
    weight,  # float32 [OLD + NEW]
    bias,  # float32 [1]
    threshold,  # float32 [1]
    forced,  # uint8 [B] with rows of forced_row, or None
    before,  # uint8 [B], `gates` apart: did the new channels' layer run? None: they always hold data
    taken,  # uint8 [B], `gates` apart
    scores,  # float32 [B], `gates` apart
    words,  # int64 [W]
    enabled,  # int64 [W]: samples that are real, or None
    live,  # int32 [B, live_row]: live groups
    live_counts,  # int32 [B]
    macs,  # int64 [B]
    gates,
    forced_row,
    pooled_row,
    sums_row,
    live_row,
    gate_macs,
    OLD: tl.constexpr,
    NEW: tl.constexpr,
    PIXELS: tl.constexpr,
    UNIT_COUNT: tl.constexpr,
    GROUP: tl.constexpr,
    KIND: tl.constexpr,  # "none", "hard", "soft"; "": nothing is left to decide
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    there = tl.full([], 1, tl.int1)
    if enabled is not None:
        there = ((tl.load(enabled + sample // 64) >> (sample % 64)) & 1) != 0
        if not there:
            if KIND != "":
                tl.store(taken + sample * gates, 0)
            return
    ran = there
    if before is not None:
        ran = tl.load(before + sample * gates) != 0
        if ran:
            count = tl.load(live_counts + sample)
            for i in tl.static_range(NEW // GROUP):
                tl.store(live + sample * live_row + count + i, OLD // GROUP + i)
            tl.store(live_counts + sample, count + NEW // GROUP)
    if KIND != "":
        c = tl.arange(0, BLOCK)
        z = tl.zeros([BLOCK], tl.float32)
        for start in range(0, OLD, BLOCK):
            old = tl.load(pooled + sample * pooled_row + start + c, mask=start + c < OLD, other=0.0)
            z += tl.load(weight + start + c, mask=start + c < OLD, other=0.0) * old
        for start in range(0, NEW, BLOCK):
            here = (start + c < NEW) & ran
            total = tl.zeros([BLOCK], tl.float32)
            for unit in range(UNIT_COUNT):
                row = (sample * UNIT_COUNT + unit) * sums_row
                total += tl.load(sums + row + start + c, mask=here, other=0.0)
            mean = total / PIXELS
            tl.store(pooled + sample * pooled_row + OLD + start + c, mean, mask=start + c < NEW)
            z += tl.load(weight + OLD + start + c, mask=start + c < NEW, other=0.0) * mean
        logit = tl.sum(z, 0) + tl.load(bias)
        # A NaN stays NaN and, exceeding nothing, skips its layer, as in torch.
        score = tl.full([], 1.0, tl.float32)
        if KIND == "hard":
            score = tl.where(logit + 0.5 < 0, 0.0, tl.where(logit + 0.5 > 1, 1.0, logit + 0.5))
        elif KIND == "soft":
            score = tl.sigmoid(logit)
        own_forced = forced
        if forced is not None:
            own_forced = forced + sample * forced_row
        take(taken, scores, words, own_forced, tl.load(threshold), sample, gates, score, KIND == "none")
        if KIND != "none":
            tl.atomic_add(macs + sample, gate_macs, sem="relaxed")


def launch_gate(
    pooled: Tensor,
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: Tensor | None,
    forced: Tensor | None,
    before: Tensor | None,
    taken: Tensor | None,
    scores: Tensor | None,
    words: Tensor | None,
    enabled: Tensor | None,
    macs: Tensor,
    *,
    old: int,
    new: int,
    pixels: int,
    kind: str,
    gate_macs: int,
    live: Tensor | None = None,
    live_counts: Tensor | None = None,
    group: int = 1,
) -> None:
    """Decides one gate for each sample.

    Args:
        pooled: float32 [B, C], means of the first ``old`` channels on entry, of ``old + new`` on return.
        sums: float32 [B, units, at least ``new``], channel sums of the ``new`` channels.
        weight, bias: float32 [at least old + new], [1].
        threshold: float32 [1].
        forced, taken, scores: columns [B] of the gate arrays: uint8, uint8, float32.
        before: uint8 [B], the column of the layer that wrote the new channels: where it is 0 they are zeros and not
            live. None: they hold data.
        words: int64 [W] of the gate, zeros on entry.
        enabled: int64 [W], the samples that are real; None: all.
        macs: int64 [B], ``gate_macs`` are added.
        kind: "none", "hard" or "soft"; "" only ends the layer before.
        live, live_counts: int32 [B, groups] and [B], the block's live groups of ``group`` channels.
    """
    batch = pooled.shape[0]
    column = before if taken is None else taken
    if batch == 0:
        return
    launch(
        gate_kernel,
        (batch,),
        pooled,
        sums,
        weight,
        bias,
        threshold,
        forced,
        before,
        taken,
        scores,
        words,
        enabled,
        live,
        live_counts,
        macs,
        0 if column is None else column.stride(0),
        0 if forced is None else forced.stride(0),
        pooled.stride(0),
        sums.stride(1),
        0 if live is None else live.stride(0),
        gate_macs,
        OLD=old,
        NEW=new,
        PIXELS=pixels,
        UNIT_COUNT=sums.shape[1],
        GROUP=group,
        KIND=kind,
        BLOCK=_BLOCK,
    )


@register("gate", mutates=["taken", "scores", "words", "macs"])
def gate(
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    threshold: Tensor,
    forced: Tensor | None,
    taken: Tensor,
    scores: Tensor,
    words: Tensor,
    enabled: Tensor | None,
    macs: Tensor,
    channels: int,
    pixels: int,
) -> None:
    """Decides a gate from a map's channel sums: ``sigmoid(weight . mean + bias) > threshold``.

    Args:
        sums: float32 [B, units, at least channels].
        weight, bias, threshold: float32 [channels], [1], [1].
        forced, taken, scores: columns [B] of the gate arrays: uint8 or None, uint8, float32; the last two written.
        words: int64 [W] of the gate, zeros on entry.
        enabled: int64 [W], the samples that are real, or None.
        macs: int64 [B], added to.
        channels, pixels: of the map.
    """
    launch_gate(
        sums.new_empty(sums.shape[0], channels),
        sums,
        weight,
        bias,
        threshold,
        forced,
        None,
        taken,
        scores,
        words,
        enabled,
        macs,
        old=0,
        new=channels,
        pixels=pixels,
        kind="soft",
        gate_macs=channels,
    )


@triton.jit
def recurrent_gate_kernel(
    sums,  # float32 [B, UNIT_COUNT, ...] with rows of sums_row
    embed,  # float32 [TEN, CHANNELS]
    embed_bias,  # float32 [TEN]
    input_weight,  # float32 [4 * TEN, TEN]: input, forget, cell, output
    hidden_weight,  # float32 [4 * TEN, TEN]
    cell_bias,  # float32 [4 * TEN]
    projection,  # float32 [TEN]
    projection_bias,  # float32 [1]
    state,  # float32 [B, 2, TEN]: hidden and cell
    threshold,
    forced,
    taken,
    scores,
    words,
    enabled,
    macs,
    gates,
    forced_row,
    sums_row,
    gate_macs,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    UNIT_COUNT: tl.constexpr,
    FIRST: tl.constexpr,
    TEN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    if enabled is not None:
        if ((tl.load(enabled + sample // 64) >> (sample % 64)) & 1) == 0:
            tl.store(taken + sample * gates, 0)
            return
    i = tl.arange(0, WIDE)
    c = tl.arange(0, BLOCK)
    known = i < TEN
    x = tl.load(embed_bias + i, mask=known, other=0.0)
    for start in range(0, CHANNELS, BLOCK):
        here = start + c < CHANNELS
        total = tl.zeros([BLOCK], tl.float32)
        for unit in range(UNIT_COUNT):
            total += tl.load(sums + (sample * UNIT_COUNT + unit) * sums_row + start + c, mask=here, other=0.0)
        at = i[:, None] * CHANNELS + (start + c)[None, :]
        x += tl.sum(tl.load(embed + at, mask=known[:, None] & here[None, :], other=0.0) * (total / PIXELS)[None, :], 1)
    own = state + sample * 2 * TEN
    hidden = tl.zeros([WIDE], tl.float32)
    cell = tl.zeros([WIDE], tl.float32)
    if not FIRST:
        hidden = tl.load(own + i, mask=known, other=0.0)
        cell = tl.load(own + TEN + i, mask=known, other=0.0)
    square = known[:, None] & known[None, :]
    at = i[:, None] * TEN + i[None, :]
    for part in tl.static_range(4):
        first = part * TEN * TEN
        pre = tl.load(cell_bias + part * TEN + i, mask=known, other=0.0)
        pre += tl.sum(tl.load(input_weight + first + at, mask=square, other=0.0) * x[None, :], 1)
        pre += tl.sum(tl.load(hidden_weight + first + at, mask=square, other=0.0) * hidden[None, :], 1)
        if part == 0:
            input_gate = tl.sigmoid(pre)
        elif part == 1:
            forget_gate = tl.sigmoid(pre)
        elif part == 2:
            new = 2 * tl.sigmoid(2 * pre) - 1
        else:
            output_gate = tl.sigmoid(pre)
    cell = forget_gate * cell + input_gate * new
    hidden = output_gate * (2 * tl.sigmoid(2 * cell) - 1)
    tl.store(own + i, hidden, mask=known)
    tl.store(own + TEN + i, cell, mask=known)
    logit = tl.sum(tl.load(projection + i, mask=known, other=0.0) * hidden, 0) + tl.load(projection_bias)
    own_forced = forced
    if forced is not None:
        own_forced = forced + sample * forced_row
    take(taken, scores, words, own_forced, tl.load(threshold), sample, gates, tl.sigmoid(logit), False)
    tl.atomic_add(macs + sample, gate_macs, sem="relaxed")


@register("recurrent_gate", mutates=["state", "taken", "scores", "words", "macs"])
def recurrent_gate(
    sums: Tensor,
    embed: Tensor,
    embed_bias: Tensor,
    input_weight: Tensor,
    hidden_weight: Tensor,
    cell_bias: Tensor,
    projection: Tensor,
    projection_bias: Tensor,
    state: Tensor,
    threshold: Tensor,
    forced: Tensor | None,
    taken: Tensor,
    scores: Tensor,
    words: Tensor,
    enabled: Tensor | None,
    macs: Tensor,
    pixels: int,
    first: bool,
) -> None:
    """One step of the LSTM that all gates of a SkipNet share (SkipNet, section 3.3), and the decision that it gives.

    The mean of the map is embedded, ``LSTMCell`` takes it on, and ``sigmoid(projection . hidden)`` is the score.

    Args:
        sums: float32 [B, units, at least C], channel sums of the map.
        embed, embed_bias: float32 [10, C] and [10].
        input_weight, hidden_weight, cell_bias: float32 [40, 10], [40, 10], [40], as torch's, the biases summed.
        projection, projection_bias: float32 [10] and [1].
        state: float32 [B, 2, 10], hidden and cell, updated.
        first: the state is zero before.
        pixels: of the map. The others as :func:`gate`'s.
    """
    batch, channels = sums.shape[0], embed.shape[1]
    if batch == 0:
        return
    launch(
        recurrent_gate_kernel,
        (batch,),
        sums,
        embed,
        embed_bias,
        input_weight,
        hidden_weight,
        cell_bias,
        projection,
        projection_bias,
        state,
        threshold,
        forced,
        taken,
        scores,
        words,
        enabled,
        macs,
        taken.stride(0),
        0 if forced is None else forced.stride(0),
        sums.stride(1),
        10 * channels + 8 * EMBEDDING * EMBEDDING + EMBEDDING,
        CHANNELS=channels,
        PIXELS=pixels,
        UNIT_COUNT=sums.shape[1],
        FIRST=first,
        TEN=EMBEDDING,
        WIDE=_WIDE,
        BLOCK=_BLOCK,
    )
