"""Gates whose scores a network has worked out itself, as values of a pooled vector."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..graph import nodes
from .gate import take
from .step import Facts, Run, Step
from .support import launch, register


@triton.jit
def decide_kernel(
    sums,  # float32 [B, UNIT_COUNT, ...] with rows of sums_row
    thresholds,  # float32 [L]
    forced,  # uint8 [B, L] with rows of forced_row, or None
    taken,  # uint8 [B, L] with rows of gates
    scores,  # float32 [B, L] with rows of gates
    words,  # int64 [L, W] with rows of word_row
    enabled,  # int64 [W]: samples for which it runs, or None
    gates,
    forced_row,
    sums_row,
    word_row,
    pixels,
    UNIT_COUNT: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1)
    if enabled is not None:
        if ((tl.load(enabled + sample // 64) >> (sample % 64)) & 1) == 0:
            tl.store(taken + sample * gates + own, 0)
            return
    total = tl.zeros([], tl.float32)
    for unit in range(UNIT_COUNT):
        total += tl.load(sums + (sample * UNIT_COUNT + unit) * sums_row + own)
    own_forced = forced
    if forced is not None:
        own_forced = forced + sample * forced_row + own
    threshold = tl.load(thresholds + own)
    take(taken + own, scores + own, words + own * word_row, own_forced, threshold, sample, gates, total / pixels, False)


@register("decide", mutates=["taken", "scores", "words"])
def decide(
    sums: Tensor,
    thresholds: Tensor,
    forced: Tensor | None,
    taken: Tensor,
    scores: Tensor,
    words: Tensor,
    enabled: Tensor | None,
    pixels: int,
) -> None:
    """Decides gates by the means of a map's channels: ``mean > threshold``. A sample for which it does not run has its
    gates shut, whatever is forced.

    Args:
        sums: float32 [B, units, at least L], channel sums of the map.
        thresholds: float32 [L].
        forced, taken, scores: columns [B, L] of the gate arrays: uint8 or None, uint8, float32; the last two written.
        words: int64 [L, W] of the gates, zeros on entry.
        enabled: int64 [W], the samples for which it runs, or None for all.
        pixels: of the map.
    """
    batch, gates = taken.shape
    if batch == 0:
        return
    launch(
        decide_kernel,
        (batch, gates),
        sums,
        thresholds,
        forced,
        taken,
        scores,
        words,
        enabled,
        taken.stride(0),
        0 if forced is None else forced.stride(0),
        sums.stride(1),
        words.stride(0),
        pixels,
        UNIT_COUNT=sums.shape[1],
    )


class Decide(Step, serves=[nodes.Decide]):
    waits = True

    def __init__(self, node: nodes.Decide, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.src_offset = node.src_offset
        self.columns = slice(node.first_gate, node.first_gate + node.in_channels)

    def forward(self, run: Run) -> None:
        sums, own = run.maps[self.src].sums, self.columns
        assert sums is not None
        decide(
            sums[:, :, self.src_offset :],
            run.thresholds[own],
            None if run.forced is None else run.forced[:, own],
            run.taken[:, own],
            run.scores[:, own],
            run.words[own],
            self._words(run),
            run.pixels(self.src),
        )
