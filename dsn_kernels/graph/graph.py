"""A network: typed nodes, the maps that they read and write, and the regions that they form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map_only

from .nodes import Head, Linear, Map, Node, Store


class Region(NamedTuple):
    """Nodes ``begin`` to ``end`` belong together: ``kind`` is one of ``_C.REGIONS``."""

    kind: str
    begin: int
    end: int


@dataclass(eq=False)
class Graph:
    """A network: its maps, its nodes in the order in which they may run, and the regions that they form."""

    maps: list[Map] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)

    def map(self, channels: int, height: int, width: int | None = None) -> int:
        """Adds a map, a square one without ``width``; returns its number."""
        self.maps.append(Map(channels, height, height if width is None else width))
        return len(self.maps) - 1

    def add(self, node: Node) -> None:
        self.nodes.append(node)

    @contextmanager
    def region(self, kind: str | None) -> Iterator[None]:
        """The nodes that are added meanwhile form a region, unless ``kind`` is None."""
        begin = len(self.nodes)
        yield
        if kind is not None:
            self.regions.append(Region(kind, begin, len(self.nodes)))

    @property
    def gates(self) -> int:
        """Gated layers of all blocks, gated units and filters."""
        return max([0, *(node.gates_end() for node in self.nodes)])

    @property
    def logits(self) -> int:
        """Outputs of all heads."""
        heads = [node for node in self.nodes if isinstance(node, (Head, Linear)) and node.dst < 0]
        return max([0, *(node.out_offset + node.out_channels for node in heads)])

    @property
    def stored(self) -> Map:
        """The map that leaves; of several, as many channels of one pixel as they have values; else of no channels."""
        stores = [node for node in self.nodes if isinstance(node, Store)]
        maps = [self.maps[node.src]._replace(channels=node.in_channels) for node in stores]
        if len(maps) == 1:
            return maps[0]
        return Map(sum(map.channels * map.pixels for map in maps), 1, 1)

    def without_weights(self) -> Graph:
        """The same with weights that have a shape and no data: what is left to ask when a backend has packed them."""

        def strip(node: Node) -> Node:
            return replace(node, **tree_map_only(Tensor, lambda weight: weight.to("meta"), vars(node)))

        return Graph(self.maps, [strip(node) for node in self.nodes], self.regions)

    def resized(self, height: int, width: int) -> Graph:
        """The same network for images of another size; it may have no linear layers on whole maps."""
        sizes: dict[int, tuple[int, int]] = {}
        for node in self.nodes:
            if node.dst >= 0 and node.dst not in sizes:
                sizes[node.dst] = (height, width) if node.src < 0 else node.output_size(*sizes[node.src])
        maps = [Map(map.channels, *sizes[i]) for i, map in enumerate(self.maps)]
        return Graph(maps, self.nodes, self.regions)
