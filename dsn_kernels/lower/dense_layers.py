"""Dense layers that follow one another as one block, which keeps a tile of the map in a cache from layer to layer."""

from __future__ import annotations

from typing import Any

from ..graph import Conv2d, DenseBlock, DenseLayer, Graph, Node, Window

_LEAST = 2  # layers that are worth a block


def join_dense_layers(graph: Graph) -> Graph:
    """Each run of dense layers on one map, BN-ReLU-1x1-ReLU and a 3x3 whose outputs follow the 1x1's inputs, as a
    :class:`DenseBlock` without gates. Huang et al., Densely Connected Convolutional Networks, section 3.

    The block's layers have numbers among the gates, behind all others. A graph with regions stays as it is.
    """
    if graph.regions:
        return graph
    nodes: list[Node] = []
    gates, at = graph.gates, 0
    while at < len(graph.nodes):
        layers = _run(graph, at)
        if len(layers) < _LEAST:
            nodes.append(graph.nodes[at])
            at += 1
            continue
        first = layers[0][0]
        made = tuple(_layer(*pair) for pair in layers)
        common: dict[str, Any] = {"dst": first.src, "in_channels": first.in_channels, "where": first.where}
        nodes.append(DenseBlock(layers=made, gate="none", merge="concat", first_gate=gates, **common))
        gates += len(layers)
        at += 2 * len(layers)
    return Graph(graph.maps, nodes, graph.regions)


def _run(graph: Graph, at: int) -> list[tuple[Conv2d, Conv2d]]:
    """The dense layers of one width and bottleneck from a node on."""
    found: list[tuple[Conv2d, Conv2d]] = []
    while at + 2 * len(found) + 1 < len(graph.nodes):
        reduce, conv = graph.nodes[at + 2 * len(found) :][:2]
        if not isinstance(reduce, Conv2d) or not isinstance(conv, Conv2d) or not _is_layer(graph, reduce, conv):
            break
        if found:
            last = found[-1][1]
            grows = reduce.src == last.dst and reduce.in_channels == last.out_offset + last.out_channels
            alike = (reduce.out_channels, conv.out_channels) == (found[-1][0].out_channels, last.out_channels)
            if not (grows and alike):
                break
        found.append((reduce, conv))
    return found


def _is_layer(graph: Graph, reduce: Conv2d, conv: Conv2d) -> bool:
    def is_plain(node: Conv2d) -> bool:
        other = node.accumulate or node.pool or node.src_offset or node.activated
        return max(node.only_if, node.out_mask) < 0 and node.groups == 1 and not other

    between = sum(reduce.dst in (node.src, node.dst) for node in graph.nodes)
    return (
        is_plain(reduce)
        and is_plain(conv)
        and between == 2  # nobody else reads what lies there
        and (reduce.window, reduce.activation, reduce.before is not None) == (Window(1, 1), "relu", True)
        and (conv.window, conv.activation, conv.before) == (Window(3, 3, 1, 1, 1), "none", None)
        and (conv.src, conv.dst, conv.out_offset) == (reduce.dst, reduce.src, reduce.in_channels)
        and not conv.bias.any()
    )


def _layer(reduce: Conv2d, conv: Conv2d) -> DenseLayer:
    assert reduce.before is not None
    inner = {"reduce": reduce.weight, "reduce_bias": reduce.bias, "conv": conv.weight}
    return DenseLayer(norm=reduce.before, conv_bias=None, expand=None, gate=None, gate_bias=None, **inner)
