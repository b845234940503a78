"""Narrow update units of a gradual layer that take their products together, which fills the CPU's blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..graph import Graph, Node, Pointwise, Region

_TOGETHER = 24  # channels: their first 1x1s and shortcuts fill the micro-kernel's blocks


def join_updates(graph: Graph) -> Graph:
    """As one update unit after another, but the products with channels that none of a few neighbours updates are taken
    at once. A graph without update units stays as it is; the result has no regions, which no CPU kernel asks for.
    """
    maps, nodes, done = list(graph.maps), list[Node](), 0
    for layer in _layers(graph):
        for group in _groups([graph.nodes[unit.begin : unit.end] for unit in layer]):
            nodes += graph.nodes[done : layer[0].begin]
            done = layer[-1].end
            if len(group) == 1:
                nodes += group[0]
                continue
            joined = group[0][0].dst
            rows = sum(unit[0].out_channels for unit in group)
            maps[joined] = maps[joined]._replace(channels=max(maps[joined].channels, rows))
            nodes += _together(group)
    return Graph(maps, nodes + graph.nodes[done:])


def _layers(graph: Graph) -> list[list[Region]]:
    """Update units that follow one another on one map, in place."""
    layers: list[list[Region]] = []
    for unit in graph.regions:
        nodes = graph.nodes[unit.begin : unit.end]
        if unit.kind != "update_unit" or nodes[0].src != nodes[-1].dst:
            continue
        if layers and layers[-1][-1].end == unit.begin and graph.nodes[layers[-1][0].begin].src == nodes[0].src:
            layers[-1].append(unit)
        else:
            layers.append([unit])
    return layers


def _groups(units: list[list[Any]]) -> list[list[list[Any]]]:
    """Neighbours that together update a few channels, fewer than all."""
    groups: list[list[list[Any]]] = [[]]
    for unit in units:
        if groups[-1] and _segment(unit).stop - _segment(groups[-1][0]).start > _TOGETHER:
            groups.append([])
        groups[-1].append(unit)
    no_room = any(unit[0].activated == 0 and len(unit) > 3 for unit in units)  # for G behind the first 1x1
    return [[unit] for unit in units] if len(groups) == 1 or no_room else groups


def _segment(unit: list[Any]) -> range:
    """The channels that a unit updates."""
    last = unit[-1]
    size = last.in_channels if isinstance(last, Pointwise) else last.out_channels
    return range(last.out_offset, last.out_offset + size)


def _together(group: list[list[Any]]) -> list[Node]:
    first = group[0][0]
    begin, end = _segment(group[0]).start, _segment(group[-1]).stop
    weight, bias = (torch.cat([getattr(unit[0], name) for unit in group]) for name in ("weight", "bias"))
    nodes: list[Node] = []
    for start, stop in ((0, begin), (end, first.in_channels)):
        if start < stop:
            later = bool(nodes)
            sizes = {"in_channels": stop - start, "src_offset": start, "activation": "none", "activated": 0}
            own = torch.zeros_like(bias) if later else bias
            nodes.append(replace(first, weight=weight[:, start:stop], bias=own, accumulate=later, **sizes))
    at = 0
    for head, *rest in group:
        sizes = {"in_channels": end - begin, "src_offset": begin, "out_offset": at, "accumulate": True}
        nodes.append(replace(head, weight=head.weight[:, begin:end], bias=torch.zeros_like(head.bias), **sizes))
        for node in rest:
            shift: dict[str, int] = {}
            if node.src == first.dst:
                shift["src_offset"] = node.src_offset + at
            if node.dst == first.dst:
                shift["out_offset"] = node.out_offset + at
            nodes.append(replace(node, **shift))
        at += head.out_channels
    return nodes
