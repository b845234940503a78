"""What no GPU kernel serves is refused when a graph is lowered, by the node's name."""

import pytest
import torch
from small_graphs import ONE, WIDE, Weights

from dsn_kernels import graph as g
from dsn_kernels.lower.cuda import lower
from dsn_models.errors import UserError


def started(channels=8):
    graph, random = g.Graph(), Weights()
    x, y = graph.map(channels, 4), graph.map(channels, 4)
    graph.add(g.Load(dst=x, in_channels=channels))
    return graph, random, x, y


def masked_pools(graph, random, x, y):
    graph.nodes.clear()
    graph.add(g.Load(dst=x, in_channels=8, out_mask=0))
    for src, dst, mask in ((x, y, 8), (y, graph.map(8, 4), 16)):
        graph.add(g.MaxPool(src=src, dst=dst, in_channels=8, window=WIDE, out_mask=mask))


def masked_part(graph, random, x, y):
    graph.add(g.Conv2d(src=x, dst=y, src_offset=2, window=ONE, out_mask=0, **random.conv(8, 4, 1)))


def decided_in_part(graph, random, x, y):
    graph.add(g.PoolSums(src=x, in_channels=8))
    graph.add(g.Decide(src=x, in_channels=4, first_gate=0))
    graph.add(g.Conv2d(src=x, dst=y, window=ONE, out_mask=0, **random.conv(8, 8, 1)))


def filled_twice(graph, random, x, y):
    graph.add(g.Conv2d(src=x, dst=y, window=ONE, **random.conv(8, 8, 1)))
    graph.add(g.Load(dst=y, in_channels=8))


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (masked_pools, "max_pool puts a third mask on a channel, which the GPU kernels do not serve"),
        (masked_part, "conv2d has a mask, and reads a part of a map, which"),
        (decided_in_part, "conv2d chooses filters by gates of which the plan decides a part, which"),
        (filled_twice, "load fills a map that is filled already, which"),
    ],
)
def test_a_node_that_no_kernel_serves(add, message):
    graph, *rest = started()
    add(graph, *rest)
    with pytest.raises(UserError, match=message) as error:
        lower(graph, torch.float32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("again", "dense_block is the second dense block on one map"),
        ("narrow", "dense_block leaves part of its map out"),
        ("convolved", "conv2d reads or writes the state of a dense block"),
    ],
)
def test_the_state_of_a_dense_block_is_its_own(change, message):
    graph, random = g.Graph(), Weights()
    x, y = graph.map(16, 4), graph.map(16, 4)
    graph.add(g.Load(dst=x, in_channels=8))
    layer = g.DenseLayer(random.norm(7 if change == "narrow" else 8), None, None, torch.zeros(4, 8, 3, 3),
                         None, None, None, None)  # fmt: skip
    block = g.DenseBlock(
        dst=x, in_channels=7 if change == "narrow" else 8, layers=(layer,), gate="none", merge="concat", first_gate=0
    )
    graph.add(block)
    if change == "again":
        graph.add(block)
    if change == "convolved":
        graph.add(g.Conv2d(src=x, dst=y, window=ONE, **random.conv(16, 12, 1)))
    with pytest.raises(UserError, match=message):
        lower(graph, torch.float16)
