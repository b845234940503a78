"""Which samples, channels and filters a program works for. Gates are read here, on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .support import launch, register

# Samples per word of a gate.
WORD = 64


@triton.jit
def select_samples(words, word_count, batch, place):
    """The sample that is number ``place`` [N] among those whose bit is set, all if ``words`` is None; -1: none."""
    if words is None:
        return tl.where(place < batch, place, -1)
    else:
        bit = tl.arange(0, 64)
        sample = tl.full(place.shape, -1, tl.int32)
        before = 0
        for w in range(word_count):
            is_set = ((tl.load(words + w) >> bit.to(tl.int64)) & 1).to(tl.int32)
            rank = before + tl.cumsum(is_set, 0) - is_set
            found = (is_set[None, :] != 0) & (rank[None, :] == place[:, None])
            sample = tl.maximum(sample, tl.max(tl.where(found, w * 64 + bit[None, :], -1), 1))
            before += tl.sum(is_set, 0)
        return sample


@triton.jit
def select_group(offsets, batch, tile, UNIT_COUNT: tl.constexpr, UNITS: tl.constexpr):
    """Finds tile number ``tile``, where a group's tiles follow those of the one before: the group's first place, -1 if
    there is no such tile; which of its units [UNITS] the tile holds; and how many samples it has."""
    i = tl.arange(0, 64)
    own = -1
    first = 0
    here = 0
    before = 0
    for start in range(0, batch, 64):
        begin = tl.load(offsets + start + i, mask=start + i < batch, other=batch).to(tl.int32)
        end = tl.load(offsets + start + i + 1, mask=start + i < batch, other=batch).to(tl.int32)
        tiles = ((end - begin) * UNIT_COUNT + UNITS - 1) // UNITS
        last = before + tl.cumsum(tiles, 0)
        found = (tile < last) & (tile >= last - tiles)
        own = tl.maximum(own, tl.max(tl.where(found, begin, -1), 0))
        first += tl.sum(tl.where(found, last - tiles, 0), 0)
        here += tl.sum(tl.where(found, end - begin, 0), 0)
        before += tl.sum(tiles, 0)
    return own, (tile - first) * UNITS + tl.arange(0, UNITS), here


def words_of(batch: int) -> int:
    """64-bit words that hold a gate's samples."""
    return max(1, triton.cdiv(batch, WORD))


def first_samples(count: Tensor, batch: int) -> Tensor:
    """Words int64 [W] with the bits of the samples below ``count`` [1] set."""
    sample = torch.arange(words_of(batch) * WORD, device=count.device)
    bits = (sample < count).long() << (sample % WORD)
    return bits.view(-1, WORD).sum(1)


@triton.jit
def partition_kernel(mask, segments, lists, counts, gates, segment_count, BLOCK: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    segment = tl.program_id(1)
    first = tl.load(segments + 2 * segment)
    size = tl.load(segments + 2 * segment + 1)
    chosen = 0
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        on = (tl.load(mask + sample * gates + first + i, mask=i < size, other=0) != 0).to(tl.int32)
        tl.store(lists + sample * gates + first + chosen + tl.cumsum(on, 0) - on, i, mask=on != 0)
        chosen += tl.sum(on, 0)
    tl.store(counts + sample * segment_count + segment, chosen)
    others = chosen
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        off = (tl.load(mask + sample * gates + first + i, mask=i < size, other=1) == 0).to(tl.int32)
        tl.store(lists + sample * gates + first + others + tl.cumsum(off, 0) - off, i, mask=off != 0)
        others += tl.sum(off, 0)


@register("partition", mutates=["lists", "counts"])
def partition(mask: Tensor, segments: Tensor, lists: Tensor, counts: Tensor) -> None:
    """For each sample and segment of a mask, the chosen entries and then the others, both in order.

    Args:
        mask: uint8 [B, L] of 0 and 1.
        segments: int32 [S, 2], first entry and number of entries of each.
        lists: int32 [B, L], written: entries counted from their segment's first, at the segment's place.
        counts: int32 [B, S], written: how many are chosen.
    """
    batch, gates = mask.shape
    if batch and len(segments):
        launch(partition_kernel, (batch, len(segments)), mask, segments, lists, counts, gates, len(segments), BLOCK=128)
