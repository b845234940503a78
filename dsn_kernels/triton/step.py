"""What the steps of a plan share: facts of the plan, a call's maps, and the base of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _C
from ..nn.cuda_packing import Unit
from ..ops.network import Instruction, Plan
from . import resample
from .conv2d import units_of
from .layout import Channels, pad
from .routing import partition

OPS = {code: name for name, code in _C.OPS.items()}
KINDS = {code: name for name, code in _C.GATES.items()}


def has(step: Instruction, flag: str) -> bool:
    return bool(step.flags & _C.FLAGS[flag])


class Facts:
    """What the instructions of a plan know of each other.

    Args:
        plan: of the CPU kernels.
        weights: float64, packed for it.
        dtype: of weights and maps.
    """

    def __init__(self, plan: Plan, weights: Tensor, dtype: torch.dtype) -> None:
        self.plan, self.weights, self.dtype = plan, weights, dtype
        self.layouts = [Channels(channels) for channels, _, _ in plan.buffers]
        self.pooled = {step.src for step in plan.code if OPS[step.op] in ("gate", "linear")}
        masks = set()
        for step in plan.code:
            if OPS[step.op] == "dense_block":
                concat = step.merge == _C.MERGES["concat"]
                self.layouts[step.dst] = Channels(
                    step.in_channels, *((step.layers, step.out_channels) if concat else ())
                )
                self.pooled.add(step.dst)
            if step.out_mask >= 0:
                masks.add((step.out_mask, step.out_channels))
        self.masks = sorted(masks)

    def unit(self, step: Instruction, layout: Any, offset: int = 0) -> Unit:
        return Unit(self.weights, step.weights + offset, layout)

    def matrix(self, weight: Tensor, channels: Channels | None = None) -> Tensor:
        """[O, I, taps] to [taps * places, columns]; without a layout the channels stay side by side."""
        if channels is not None:
            weight = channels.spread(weight, 1)
        return pad(weight.permute(2, 1, 0).flatten(0, 1), 1).to(self.dtype)


@dataclass
class Map:
    """A buffer's data [B, pixels, places] and, if gates read it, channel sums [B, units, places]; of a dense block's
    state the live groups and the block's part of ``taken``."""

    data: Tensor
    sums: Tensor | None = None
    live: Tensor | None = None
    live_counts: Tensor | None = None
    taken: Tensor | None = None


@dataclass
class Run:
    """One call: what goes in, what comes out and the maps between."""

    image: Tensor
    dtype: torch.dtype
    sizes: list[tuple[int, int]]
    layouts: list[Channels]
    thresholds: Tensor
    forced: Tensor | None
    enabled: Tensor | None
    logits: Tensor
    taken: Tensor
    scores: Tensor
    words: Tensor
    macs: Tensor
    map: Tensor
    maps: dict[int, Map] = field(default_factory=dict)
    lists: Tensor | None = None
    list_counts: Tensor | None = None
    state: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.image.shape[0]

    def pixels(self, buffer: int) -> int:
        height, width = self.sizes[buffer]
        return height * width

    def put(self, buffer: int, data: Tensor, pooled: bool) -> None:
        self.maps[buffer] = Map(data, resample.unit_sums(data) if pooled else None)

    def into(self, buffer: int, pooled: bool) -> Map:
        """The buffer's map, made if it is not there."""
        if buffer not in self.maps:
            pixels, places = self.pixels(buffer), self.layouts[buffer].places
            data = torch.empty(self.batch, pixels, places, dtype=self.dtype, device=self.image.device)
            sums = None
            if pooled:
                sums = torch.empty(self.batch, units_of(pixels), places, device=self.image.device)
            self.maps[buffer] = Map(data, sums)
        return self.maps[buffer]

    def choose(self, segments: Tensor) -> None:
        """Takes the forced gates as masks and lists each one's chosen filters."""
        assert self.forced is not None
        self.taken = (self.forced != 0).to(torch.uint8)
        self.lists = torch.empty_like(self.taken, dtype=torch.int32)
        self.list_counts = self.lists.new_empty(self.batch, len(segments))
        partition(self.taken, segments, self.lists, self.list_counts)


class Step(nn.Module):
    """An instruction of a plan.

    Args:
        step: the instruction.
        facts: of its plan.
    """

    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__()
        self.step = step
        self.pool = step.dst in facts.pooled
        self._lists: dict[str, int] = {}

    def _keep(self, name: str, value: Tensor, dtype: torch.dtype | None = torch.float32) -> None:
        value = value if dtype is None else value.to(dtype)
        self.register_buffer(name, value.contiguous(), persistent=False)

    def _keep_list(self, name: str, values: list[Tensor], dtype: torch.dtype | None = torch.float32) -> None:
        self._lists[name] = len(values)
        for i, value in enumerate(values):
            self._keep(f"{name}{i}", value, dtype)

    def _list(self, name: str) -> list[Tensor]:
        return [getattr(self, f"{name}{i}") for i in range(self._lists[name])]
