"""What the steps of a graph share: facts of the graph, a call's maps, and the base of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dsn_models.errors import UserError

from ..graph import Affine, DenseBlock, Graph, Node, decided_gates, find_reads, pooled_maps
from . import resample
from .channel_lists import ChannelLists, Listed
from .layout import Channels, pad
from .tiles import units_of


class Facts:
    """What the nodes of a graph know of each other.

    Args:
        graph: the network.
        dtype: of weights and maps.
    """

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        self.graph, self.dtype = graph, dtype
        self.layouts = [Channels(map.channels) for map in graph.maps]
        for node in graph.nodes:
            if isinstance(node, DenseBlock):
                slices = (len(node.layers), node.added) if node.added else ()
                self.layouts[node.dst] = Channels(node.in_channels, *slices)
        self.pooled = pooled_maps(graph)
        self.lists = ChannelLists(graph, find_reads(graph))

    def matrix(self, weight: Tensor, channels: Channels | None = None) -> Tensor:
        """[O, I, rows, columns] to [taps * places, columns]; without a layout the channels stay side by side."""
        weight = weight.flatten(2)
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
    lists: ChannelLists
    maps: dict[int, Map] = field(default_factory=dict)
    listed: Listed | None = None
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
                sums = torch.empty(self.batch, units_of(pixels), places, dtype=torch.float32, device=self.image.device)
            self.maps[buffer] = Map(data, sums)
        return self.maps[buffer]

    def choose(self) -> None:
        """Lists what the gates choose that are known so far."""
        self.listed = self.lists.make(self.taken)

    def chosen(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """Entries and count of a list; nothing for -1."""
        if index < 0:
            return None, None
        assert self.listed is not None
        return self.listed.entries[:, self.lists.slices[index]], self.listed.counts[:, index]

    def grouped(self, pattern: int) -> tuple[Tensor | None, Tensor | None]:
        """Order and offsets of the samples by a pattern; nothing for -1."""
        if pattern < 0:
            return None, None
        assert self.listed is not None
        return self.listed.order[pattern], self.listed.offsets[pattern]

    def filled(self, data: Tensor, index: int) -> Tensor:
        """A map's rows [B, ..., at least channels], zeros in the channels that hold no data."""
        on = self.holds(index)
        return data if on is None else torch.where(on[:, None] != 0, data[..., : on.shape[1]], 0)

    def holds(self, index: int) -> Tensor | None:
        """Of a list, uint8 [B, channels]: 0 where a channel holds no data; nothing for -1."""
        if index < 0:
            return None
        assert self.listed is not None
        return self.listed.masks[:, self.lists.slices[index]]


STEPS: dict[type[Node], type[Step]] = {}  # the module of each type of node


class Step(nn.Module):
    """A node of a graph: its weights, packed, and a call of one operator. It keeps nothing of the original weights.

    A subclass names the types of nodes that it serves: ``class Gate(Step, serves=[nodes.Gate])``. ``waits``: its nodes
    may be in a region that a gate shuts; ``reads_slices``: they may read what a dense block left.

    Args:
        node: number ``index`` of a graph.
        facts: of the graph.

    Raises:
        UserError: the node is behind a gate or a dense block, and not served there.
    """

    waits: ClassVar[bool] = False
    reads_slices: ClassVar[bool] = False

    def __init_subclass__(cls, serves: Sequence[type[Node]] = ()) -> None:
        super().__init_subclass__()
        STEPS.update(dict.fromkeys(serves, cls))

    def __init__(self, node: Node, index: int, facts: Facts) -> None:
        super().__init__()
        if node.only_if >= 0 and not self.waits:
            raise UserError(f"{node.where or node.op}: {node.op} is not served behind a gate; expected only_if -1")
        if node.src >= 0 and facts.layouts[node.src].slices and not self.reads_slices:
            raise UserError(
                f"{node.where or node.op}: {node.op} is not served on the map of a dense block; "
                "expected a transition, a head or a store"
            )
        self.src, self.dst, self.in_channels, self.only_if = node.src, node.dst, node.in_channels, node.only_if
        self.pool = node.dst in facts.pooled
        lists = facts.lists
        self.inputs, self.filters, self.pattern = lists.inputs[index], lists.filters[index], lists.patterns[index]
        self.chooses = not lists.gates.isdisjoint(decided_gates(node))  # lists are made anew behind it
        self._lists: dict[str, int] = {}

    def _inputs(self, run: Run, m: Map, layout: Channels) -> tuple[Tensor | None, Tensor | None, int]:
        """The channels of a map that hold data: groups that a dense block listed or channels that masks chose, their
        count, and the channels of a group."""
        if self.inputs < 0:
            return m.live, m.live_counts, layout.group
        return *run.chosen(self.inputs), 1

    def _words(self, run: Run) -> Tensor | None:
        """Bits of the samples for which the node runs; None: all."""
        return run.enabled if self.only_if < 0 else run.words[self.only_if]

    def _filled(self, run: Run, first: int) -> Tensor:
        """The channels of src that are read, from ``first`` on, zeros in those that hold no data."""
        return run.filled(run.maps[self.src].data[:, :, first:], self.inputs)[:, :, : self.in_channels]

    def _write(self, run: Run, to: Tensor, value: Tensor) -> None:
        """``value`` [B, ...] into ``to``, of the samples for which the node runs."""
        if self.only_if >= 0:
            runs = run.taken[:, self.only_if] != 0
            value = torch.where(runs.view(-1, *[1] * (to.dim() - 1)), value, to)
        to.copy_(value)

    def _keep(self, name: str, value: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.register_buffer(name, value.detach().to("cpu", dtype).contiguous(), persistent=False)

    def _keep_list(self, name: str, values: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
        self._lists[name] = len(values)
        for i, value in enumerate(values):
            self._keep(f"{name}{i}", value, dtype)

    def _list(self, name: str) -> list[Tensor]:
        return [getattr(self, f"{name}{i}") for i in range(self._lists[name])]


def pack_norm(norm: Affine, channels: Channels) -> Tensor:
    """[2, places]: scale and shift."""
    return torch.stack([channels.spread(part, 0) for part in norm])
