"""Graphs made by hand, of random weights: between them every node, and every option that a kernel tells apart."""

import math

import torch

from dsn_kernels import graph as g

WIDE = g.Window(3, 3, 1, 1, 1)
ONE = g.Window(1, 1)


class Weights:
    """Random weights whose products neither vanish nor grow, and parts of nodes."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, scale=1.0):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale

    def kernel(self, *shape):
        return self.normal(*shape, scale=(2 / math.prod(shape[1:])) ** 0.5)

    def bias(self, channels):
        return self.normal(channels, scale=0.3)

    def norm(self, channels):
        return g.Affine(self.normal(channels, scale=0.5) + 0.8, self.bias(channels))

    def conv(self, out_channels, in_channels, rows=1, columns=None):
        """Weight and bias of a `Conv2d`."""
        kernel = self.kernel(out_channels, in_channels, rows, columns or rows)
        return {"in_channels": in_channels, "weight": kernel, "bias": self.bias(out_channels)}

    def depthwise(self, channels, rows, columns=None):
        """Weight and bias of a `Depthwise`."""
        kernel = self.kernel(channels, 1, rows, columns or rows)
        return {"in_channels": channels, "weight": kernel, "bias": self.bias(channels)}

    def linear(self, out_channels, in_channels):
        kernel = self.kernel(out_channels, in_channels)
        return {"in_channels": in_channels, "weight": kernel, "bias": self.bias(out_channels)}

    def layer(self, channels, growth, bottleneck, merge, gate):
        add, inner = merge == "add", bottleneck or channels
        return g.DenseLayer(
            norm=self.norm(channels),
            reduce=self.kernel(bottleneck, channels, 1, 1) if bottleneck else None,
            reduce_bias=self.bias(bottleneck) if bottleneck else None,
            conv=self.kernel(bottleneck if add else growth, inner, 3, 3),
            conv_bias=self.bias(bottleneck) if add else None,
            expand=self.kernel(channels, bottleneck, 1, 1) if add else None,
            gate=None if gate == "none" else self.normal(channels, scale=2 / channels**0.5),
            gate_bias=None if gate == "none" else self.bias(1),
        )

    def block(self, channels, layers, growth=12, bottleneck=True, merge="concat", gate="hard", **fields):
        """A `DenseBlock`; a bottleneck has four times the growth rate, of the add merge a quarter of the channels."""
        inner = channels // 4 if merge == "add" else 4 * growth if bottleneck else 0
        step = 0 if merge == "add" else growth
        made = tuple(self.layer(channels + i * step, growth, inner, merge, gate) for i in range(layers))
        return g.DenseBlock(in_channels=channels, layers=made, gate=gate, merge=merge, **{"first_gate": 0, **fields})


def width(block):
    """Channels of a dense block's map."""
    return block.channels_before(len(block.layers))


def dense_block(size, seed=0, **options):
    """A block alone, between the map that enters and the one that leaves."""
    graph, block = g.Graph(), Weights(seed).block(**options)
    x = graph.map(width(block), *size)
    graph.add(g.Load(dst=x, in_channels=block.in_channels))
    graph.add(g.DenseBlock(**{**vars(block), "dst": x}))
    graph.add(g.Store(src=x, in_channels=width(block)))
    return graph


def transition(channels, out_channels, size):
    graph, weights = g.Graph(), Weights()
    x, y = graph.map(channels, *size), graph.map(out_channels, size[0] // 2, size[1] // 2)
    norm, weight = weights.norm(channels), weights.kernel(out_channels, channels, 1, 1)
    graph.add(g.Load(dst=x, in_channels=channels))
    graph.add(g.Transition(src=x, dst=y, in_channels=channels, norm=norm, weight=weight))
    graph.add(g.Store(src=y, in_channels=out_channels))
    return graph


def head(channels, classes, size):
    graph, weights = g.Graph(), Weights()
    x = graph.map(channels, *size)
    graph.add(g.Load(dst=x, in_channels=channels))
    graph.add(g.Head(src=x, norm=weights.norm(channels), **weights.linear(classes, channels)))
    return graph


def two_branches(gate="hard"):
    """Two dense branches, the last block of the second guided by the first; a path decides on its features."""
    graph, weights = g.Graph(), Weights()
    stem, guide, gates, logits = weights.kernel(12, 3, 3, 3), -1, 0, 0
    for branch in ("coarse", "fine"):
        first_gate, first = gates, weights.block(12, 2, growth=6, gate=gate)
        x = graph.map(width(first), 8)
        graph.add(g.Stem(dst=x, in_channels=3, weight=stem, branch=branch))
        graph.add(g.DenseBlock(**{**vars(first), "dst": x, "first_gate": gates, "branch": branch}))
        gates += 2
        channels = width(first) + (graph.maps[guide].channels if guide >= 0 else 0)
        second = weights.block(10, 2, growth=6, bottleneck=False, gate=gate)
        y = graph.map(width(second), 4)
        fields = {"norm": weights.norm(channels), "weight": weights.kernel(10, channels, 1, 1), "branch": branch}
        graph.add(g.Transition(src=x, dst=y, in_channels=width(first), guide=guide, **fields))
        graph.add(g.DenseBlock(**{**vars(second), "dst": y, "first_gate": gates, "branch": branch}))
        gates += 2
        classes = {"src": y, "norm": weights.norm(width(second)), "out_offset": logits, "branch": branch}
        classes |= weights.linear(5, width(second))
        if branch == "coarse":
            graph.add(g.Head(**classes))
        else:
            path, bias = weights.normal(2, width(second), 4, scale=0.3), weights.normal(2, width(second), scale=0.3)
            graph.add(g.PathHead(path=path, path_bias=bias, first_gate=first_gate, **classes))
        guide, logits = y, logits + 5
    return graph


def residual(recurrent):
    """Units that a gate keeps or bypasses: after a subsampled shortcut, and on an identity.

    Gates are recurrent, or of a pooled convolution of a pooled map.
    """
    graph, weights = g.Graph(), Weights()
    image, x = graph.map(3, 8), graph.map(8, 8)
    graph.add(g.Load(dst=image, in_channels=3))
    graph.add(g.Conv2d(src=image, dst=x, window=WIDE, activation="relu", pool=recurrent, **weights.conv(8, 3, 3)))
    y, inner = graph.map(20, 4), graph.map(20, 4)
    scale = {"scale": 0.4}
    shared = g.Recurrence(
        weights.normal(40, 10, **scale), weights.normal(40, 10, **scale), weights.bias(40), weights.normal(10),
        weights.bias(1),
    )  # fmt: skip
    for index in range(2):
        channels = graph.maps[x].channels
        if recurrent:
            fields = {"recurrence": shared, "follows": index > 0, **weights.linear(10, channels)}
            graph.add(g.Gate(src=x, first_gate=index, **fields))
        else:
            side = graph.maps[x].height // 2
            small, pooled = graph.map(channels, side), graph.map(channels, side // 2)
            graph.add(g.MaxPool(src=x, dst=small, in_channels=channels, window=g.Window(2, 2, 2)))
            fields = {
                "window": g.Window(3, 3, 2, 1, 1),
                "activation": "relu",
                "pool": True,
                "exact": True,
                "where": "gate",
            }
            graph.add(g.Conv2d(src=small, dst=pooled, **fields, **weights.conv(channels, channels, 3)))
            graph.add(g.Gate(src=pooled, first_gate=index, **weights.linear(1, channels)))
        if index == 0:
            graph.add(g.Subsample(src=x, dst=y, in_channels=channels, out_channels=20, stride=2, out_offset=6))
        first = g.Window(3, 3, 1 if index else 2, 1, 1)
        graph.add(
            g.Conv2d(src=x, dst=inner, window=first, activation="relu", only_if=index, **weights.conv(20, channels, 3))
        )
        fields = {"accumulate": True, "activation": "relu", "pool": recurrent, "only_if": index, "window": WIDE}
        graph.add(g.Conv2d(src=inner, dst=y, **fields, **weights.conv(20, 20, 3)))
        x = y
    if not recurrent:
        graph.add(g.PoolSums(src=x, in_channels=20))
    graph.add(g.Linear(src=x, **weights.linear(7, 20)))
    return graph


def chosen_filters():
    """Masks choose the image's channels, filters of a residual unit and those of a concatenation.

    The concatenation is of a convolution and a pool; a BN-ReLU-1x1, a transition and a head read it.
    """
    graph, weights = g.Graph(), Weights()
    image, x, inner, joined = graph.map(5, 8), graph.map(18, 8), graph.map(18, 8), graph.map(30, 4)
    graph.add(g.Load(dst=image, in_channels=5, out_mask=0))
    graph.add(g.Conv2d(src=image, dst=x, window=WIDE, activation="relu", **weights.conv(18, 5, 3)))
    graph.add(g.Conv2d(src=x, dst=inner, window=WIDE, activation="relu", out_mask=5, **weights.conv(18, 18, 3)))
    fields = {"accumulate": True, "activation": "relu", "out_mask": 23}
    graph.add(g.Conv2d(src=inner, dst=x, window=WIDE, **fields, **weights.conv(18, 18, 3)))
    stride2 = g.Window(3, 3, 2, 1, 1)
    graph.add(g.Conv2d(src=x, dst=joined, window=stride2, activation="relu", out_mask=41, **weights.conv(12, 18, 3)))
    graph.add(g.MaxPool(src=inner, dst=joined, in_channels=18, window=stride2, out_offset=12, out_mask=53))
    narrow, small = graph.map(16, 4), graph.map(9, 2)
    before = {"before": weights.norm(30), "activation": "relu", "out_mask": 71}
    graph.add(g.Conv2d(src=joined, dst=narrow, window=ONE, **before, **weights.conv(16, 30)))
    norm = weights.norm(30)
    graph.add(g.Transition(src=joined, dst=small, in_channels=30, norm=norm, weight=weights.kernel(9, 30, 1, 1)))
    graph.add(g.Head(src=joined, norm=weights.norm(30), **weights.linear(4, 30)))
    graph.add(g.Head(src=small, norm=weights.norm(9), out_offset=4, **weights.linear(3, 9)))
    wide = graph.map(20, 4)
    graph.add(g.Subsample(src=narrow, dst=wide, in_channels=16, out_channels=20, stride=1, out_offset=2))
    graph.add(g.Pointwise(accumulate=True, src=narrow, dst=wide, in_channels=16, out_offset=4))
    graph.add(g.PoolSums(src=narrow, in_channels=16))
    graph.add(g.Linear(src=narrow, out_offset=7, **weights.linear(6, 16)))
    graph.add(g.Store(src=wide, in_channels=20))
    return graph


def windows():
    """Windows of any kind, parts of maps, and what stands between them."""
    graph, weights = g.Graph(), Weights()
    image, first, x = graph.map(3, 9, 10), graph.map(16, 9, 10), graph.map(20, 9, 10)
    graph.add(g.Load(dst=image, in_channels=3))
    graph.add(g.Conv2d(src=image, dst=first, window=g.Window(5, 5, 1, 2, 2), **weights.conv(16, 3, 5)))
    graph.add(g.Pointwise(src=first, dst=first, activation="tanh", in_channels=16))
    row = {"src": first, "dst": x, "activation": "relu", "activated": 5, "window": g.Window(1, 7, 1, 0, 3)}
    graph.add(g.Conv2d(**row, **weights.conv(12, 16, 1, 7)))
    fields = {"before": weights.norm(16), "out_offset": 12, "window": WIDE}
    graph.add(g.Conv2d(src=first, dst=x, **fields, **weights.conv(8, 16, 3)))
    graph.add(g.Pointwise(accumulate=True, src=first, dst=x, in_channels=4, src_offset=12, out_offset=1))
    fields = {"src_offset": 3, "out_offset": 5, "accumulate": True, "window": ONE}
    graph.add(g.Conv2d(src=x, dst=first, **fields, **weights.conv(4, 16)))
    y = graph.map(24, 5, 5)
    graph.add(g.Conv2d(src=x, dst=y, window=g.Window(1, 1, 2), before=weights.norm(20), **weights.conv(10, 20)))
    skip = {"window": g.Window(1, 1, 2, -1, -1), "out_offset": 10}  # every other pixel, one further on
    graph.add(g.Conv2d(src=x, dst=y, before=weights.norm(20), **skip, **weights.conv(14, 20)))
    z = graph.map(40, 2, 2)
    graph.add(g.AvgPool(src=y, dst=z, in_channels=24, window=g.Window(3, 3, 2, 0, 0)))
    graph.add(g.AvgPool(src=first, dst=z, in_channels=16, window=g.Window(5, 6, 4), out_offset=24))
    graph.add(g.Conv2d(src=z, dst=(last := graph.map(11, 1)), window=g.Window(2, 2), **weights.conv(11, 40, 2)))
    graph.add(g.PoolSums(src=last, in_channels=11))
    graph.add(g.Linear(src=last, **weights.linear(6, 11)))
    graph.add(g.Store(src=first, in_channels=16))
    return graph


def separable():
    """Depthwise convolutions: in a unit that a gate keeps or bypasses, over part of a map that is there, and always."""
    graph, weights = g.Graph(), Weights()
    image, x, y = graph.map(3, 9, 10), graph.map(10, 9, 10), graph.map(13, 5, 5)
    wide, inner = graph.map(23, 9, 10), graph.map(23, 9, 10)
    graph.add(g.Load(dst=image, in_channels=3))
    graph.add(g.Conv2d(src=image, dst=x, window=WIDE, activation="relu", **weights.conv(10, 3, 3)))
    graph.add(g.PoolSums(src=x, in_channels=10))
    graph.add(g.Gate(src=x, first_gate=0, **weights.linear(1, 10)))
    unit = {"only_if": 0}
    graph.add(g.Conv2d(src=x, dst=wide, window=ONE, activation="relu", **unit, **weights.conv(23, 10)))
    window = g.Window(5, 5, 1, 2, 2)
    graph.add(g.Depthwise(src=wide, dst=inner, window=window, activation="relu", **unit, **weights.depthwise(23, 5)))
    graph.add(g.Conv2d(src=inner, dst=x, window=ONE, accumulate=True, **unit, **weights.conv(10, 23)))
    graph.add(g.PoolSums(src=x, in_channels=10))
    graph.add(g.Gate(src=x, first_gate=1, **weights.linear(1, 10)))
    stride2 = {"src": x, "dst": y, "window": g.Window(3, 3, 2, 1, 1)}
    graph.add(g.Conv2d(**stride2, **weights.conv(13, 10, 3)))
    graph.add(g.Depthwise(out_offset=3, only_if=1, **stride2, **weights.depthwise(10, 3)))
    z, last = graph.map(13, 3), graph.map(13, 2, 3)
    graph.add(g.Depthwise(src=y, dst=z, window=g.Window(3, 3), activation="relu", **weights.depthwise(13, 3)))
    graph.add(g.Depthwise(src=z, dst=last, window=g.Window(2, 3, 1, 0, 1), **weights.depthwise(13, 2, 3)))
    graph.add(g.PoolSums(src=last, in_channels=13))
    graph.add(g.Linear(src=last, **weights.linear(4, 13)))
    graph.add(g.Store(src=z, in_channels=13))
    return graph


def separable_filters():
    """A depthwise convolution of filters that a mask chose, and a head of what it leaves."""
    graph, weights = g.Graph(), Weights()
    image, x, y = graph.map(3, 6), graph.map(9, 6), graph.map(9, 6)
    graph.add(g.Load(dst=image, in_channels=3))
    graph.add(g.Conv2d(src=image, dst=x, window=WIDE, activation="relu", out_mask=0, **weights.conv(9, 3, 3)))
    graph.add(g.Depthwise(src=x, dst=y, window=WIDE, **weights.depthwise(9, 3)))
    graph.add(g.Head(src=y, norm=weights.norm(9), **weights.linear(4, 9)))
    return graph


def depthwise(channels, size, window, **fields):
    """One alone, between the map that enters and the one that leaves."""
    graph, weights = g.Graph(), Weights()
    x, y = graph.map(channels, *size), graph.map(channels, *window.output_size(*size))
    graph.add(g.Load(dst=x, in_channels=channels))
    own = weights.depthwise(channels, window.rows, window.columns)
    graph.add(g.Depthwise(src=x, dst=y, window=window, **fields, **own))
    graph.add(g.Store(src=y, in_channels=channels))
    return graph


def residual_units(channels, size, gated):
    """A map whose pooled vector is kept, units of two 3x3 in place, x = relu(x + conv2(relu(conv1(x)))), and a store.

    ``gated``: of each unit, whether it is behind a gate on the pooled map.
    """
    graph, weights = g.Graph(), Weights()
    x, inner = graph.map(channels, *size), graph.map(channels, *size)
    graph.add(g.Load(dst=x, in_channels=channels))
    graph.add(g.PoolSums(src=x, in_channels=channels))
    graph.add(g.Linear(src=x, **weights.linear(1, channels)))  # so that the sums are kept
    ends = {"accumulate": True, "activation": "relu", "pool": True}
    for i, has_gate in enumerate(gated):
        gate = sum(gated[:i]) if has_gate else -1
        with graph.region("residual_unit"):
            if has_gate:
                graph.add(g.Gate(src=x, first_gate=gate, **weights.linear(1, channels)))
            for src, dst, flags in ((x, inner, {"activation": "relu"}), (inner, x, ends)):
                conv = weights.conv(channels, channels, 3)
                graph.add(g.Conv2d(src=src, dst=dst, window=WIDE, only_if=gate, **flags, **conv))
    graph.add(g.Store(src=x, in_channels=channels))
    return graph


NETWORKS = {
    "two branches": two_branches,
    "two branches of soft gates": lambda: two_branches("soft"),
    "dense without gates": lambda: dense_block((6, 6), channels=16, layers=2, growth=16, gate="none"),
    "recurrent gates": lambda: residual(True),
    "pooled gates": lambda: residual(False),
    "chosen filters": chosen_filters,
    "windows": windows,
    "separable": separable,
    "separable filters": separable_filters,
}

# Of depthwise convolutions alone: channels, size of the map, window.
DEPTHWISE = [
    (32, (8, 8), WIDE),
    (6, (7, 7), WIDE),
    (5, (14, 15), g.Window(3, 3, 2, 1, 1)),
    (3, (33, 40), g.Window(5, 5, 1, 2, 2)),
    (3, (33, 40), g.Window(5, 5, 2, 2, 2)),
    (17, (9, 6), g.Window(3, 3)),
    (2, (12, 13), g.Window(7, 5, 3, 3, 2)),
    (4, (9, 9), g.Window(1, 1, 4)),
    (1, (1, 1), WIDE),
    (7, (6, 5), g.Window(2, 2, 1, -1, -1)),  # from the second row and column on
]


def make_images(graph, batch):
    """For the first node of a graph, or for all that load, one behind another."""
    loads = [node for node in graph.nodes if isinstance(node, g.Load)] or graph.nodes[:1]
    shapes = [(node.in_channels, *graph.maps[node.dst][1:]) for node in loads]
    shape = shapes[0] if len(loads) == 1 else (sum(map(math.prod, shapes)), 1, 1)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, *shape, generator=generator)


def random_gates(graph, batch, density=0.5):
    generator = torch.Generator().manual_seed(100 + batch)
    return (torch.rand(batch, graph.gates, generator=generator) < density).to(torch.uint8)


def needs_gates(graph):
    """Whether masks choose filters, which have no scores."""
    return any(getattr(node, "out_mask", -1) >= 0 for node in graph.nodes)


def _alone(channels, size, add):
    """What ``add(graph, weights, x)`` adds behind a map x that enters; the map that it returns leaves."""
    graph, weights = g.Graph(), Weights()
    x = graph.map(channels, *size)
    graph.add(g.Load(dst=x, in_channels=channels))
    y = add(graph, weights, x)
    graph.add(g.Store(src=y, in_channels=graph.maps[y].channels))
    return graph


def convolution(channels, out_channels, size, window, groups=1, **fields):
    def add(graph, weights, x):
        y = graph.map(out_channels, *window.output_size(*size))
        own = weights.conv(out_channels, channels // groups, window.rows, window.columns) | {"in_channels": channels}
        graph.add(g.Conv2d(src=x, dst=y, window=window, groups=groups, **own, **fields))
        return y

    return _alone(channels, size, add)


# Name to channels, outputs, size, window and groups.
CONVOLUTIONS = {
    "dilated": (5, 9, (11, 9), g.Window(3, 3, 1, 2, 2, 2), 1),
    "dilated-stride": (6, 4, (13, 12), g.Window(3, 2, 2, 3, 1, 3), 1),
    "uneven-padding": (3, 8, (9, 10), g.Window(3, 3, 2, 0, 0, 1, 1, 1), 1),
    "shifted": (4, 4, (6, 6), g.Window(1, 1, 2, -1, -1, 1, 2, 2), 1),
    "groups": (12, 20, (9, 7), WIDE, 4),
    "groups-stride": (24, 24, (9, 12), g.Window(3, 3, 2, 1, 1), 8),
    "groups-1x1": (30, 18, (7, 5), ONE, 6),
    "groups-5x5": (8, 16, (7, 9), g.Window(5, 5, 1, 2, 2), 2),
    "groups-dilated": (8, 8, (10, 9), g.Window(3, 3, 1, 2, 2, 2), 4),
    "multiplied": (5, 15, (8, 8), WIDE, 5),
}


def activated(kind):
    """A convolution, a grouped one, a depthwise one and two pointwise operations, all with this activation."""
    graph, weights = g.Graph(), Weights()
    image, x, y, z = (graph.map(channels, 7, 9) for channels in (3, 20, 20, 20))
    graph.add(g.Load(dst=image, in_channels=3))
    graph.add(g.Conv2d(src=image, dst=x, window=WIDE, activation=kind, pool=True, **weights.conv(20, 3, 3)))
    graph.add(g.Linear(src=x, activation=kind, **weights.linear(35, 20)))
    grouped = weights.conv(20, 5, 3) | {"in_channels": 20}
    graph.add(g.Conv2d(src=x, dst=y, window=WIDE, groups=4, activation=kind, activated=13, **grouped))
    graph.add(g.Conv2d(src=x, dst=y, window=ONE, accumulate=True, activation=kind, **weights.conv(20, 20)))
    graph.add(g.Depthwise(src=y, dst=z, window=WIDE, activation=kind, **weights.depthwise(20, 3)))
    graph.add(g.Pointwise(src=y, dst=z, in_channels=20, affine=weights.norm(20), activation=kind, accumulate=True))
    graph.add(g.Pointwise(src=z, dst=z, in_channels=13, src_offset=2, out_offset=2, activation=kind))
    graph.add(g.Store(src=z, in_channels=20))
    return graph


def excited():
    """Squeeze and excitation: a factor for each channel, of the pooled map; in place, and into another map."""

    def add(graph, weights, x):
        squeezed, factor, y = graph.map(4, 1), graph.map(22, 1), graph.map(25, 6, 7)
        graph.add(g.PoolSums(src=x, in_channels=22))
        graph.add(g.FullyConnected(src=x, dst=squeezed, activation="relu", **weights.linear(4, 22)))
        graph.add(g.FullyConnected(src=squeezed, dst=factor, activation="sigmoid", **weights.linear(22, 4)))
        graph.add(g.Pointwise(src=x, dst=x, in_channels=22, factor=factor))
        graph.add(g.Conv2d(src=x, dst=y, window=ONE, **weights.conv(25, 22)))
        norm = {"affine": weights.norm(22), "activation": "hardswish"}
        graph.add(g.Pointwise(src=x, dst=y, in_channels=22, factor=factor, out_offset=3, accumulate=True, **norm))
        return y

    return _alone(22, (6, 7), add)


def enlarged():
    """Maps that are enlarged: into a map of their own, and onto part of one."""

    def add(graph, weights, x):
        y, small, z = graph.map(7, 10, 12), graph.map(9, 5, 6), graph.map(12, 10, 12)
        graph.add(g.Upsample(src=x, dst=y, in_channels=7, stride=2))
        graph.add(g.Conv2d(src=x, dst=small, window=WIDE, **weights.conv(9, 7, 3)))
        graph.add(g.Conv2d(src=y, dst=z, window=ONE, **weights.conv(12, 7)))
        part = {"in_channels": 6, "src_offset": 2, "out_offset": 3}
        graph.add(g.Upsample(src=small, dst=z, stride=2, accumulate=True, activation="relu", **part))
        return z

    return _alone(7, (5, 6), add)


def joined():
    """Parts of a map that are copied, pooled and convolved into parts of another."""

    def add(graph, weights, x):
        y, z = graph.map(18, 9, 8), graph.map(24, 5, 4)
        graph.add(g.Pointwise(src=x, dst=y, in_channels=7, src_offset=3))
        graph.add(g.Conv2d(src=x, dst=y, window=WIDE, out_offset=7, **weights.conv(6, 10, 3)))
        graph.add(g.Depthwise(src=x, dst=y, window=WIDE, src_offset=5, out_offset=13, **weights.depthwise(5, 3)))
        padded, ceil = g.Window(3, 3, 2, 1, 1), g.Window(2, 2, 2, ceil=True)
        assert padded.output_size(9, 8) == ceil.output_size(9, 8) == (5, 4)
        graph.add(g.AvgPool(src=y, dst=z, in_channels=8, window=padded, src_offset=4, count_padding=True))
        graph.add(g.MaxPool(src=y, dst=z, in_channels=4, window=ceil, src_offset=1, out_offset=8))
        graph.add(g.AvgPool(src=y, dst=z, in_channels=5, window=ceil, src_offset=13, out_offset=12, count_padding=True))
        graph.add(g.AvgPool(src=y, dst=z, in_channels=7, window=padded, src_offset=11, out_offset=17))
        return z

    return _alone(10, (9, 8), add)


def several():
    """Tensors of different sizes that enter one behind another, and leave so."""
    graph, weights = g.Graph(), Weights()
    first, second, vector = graph.map(3, 9, 10), graph.map(5, 4, 6), graph.map(6, 1)
    x, y = graph.map(9, 9, 10), graph.map(7, 4, 6)
    graph.add(g.Load(dst=first, in_channels=3))
    graph.add(g.Load(dst=second, in_channels=5, src_offset=270))
    graph.add(g.Load(dst=vector, in_channels=6, src_offset=390))
    graph.add(g.Conv2d(src=first, dst=x, window=WIDE, **weights.conv(9, 3, 3)))
    graph.add(g.Conv2d(src=second, dst=y, window=ONE, pool=True, **weights.conv(7, 5)))
    graph.add(g.PoolSums(src=vector, in_channels=6))
    graph.add(g.Linear(src=vector, **weights.linear(4, 6)))
    graph.add(g.Store(src=x, in_channels=9))
    graph.add(g.Store(src=y, in_channels=7, out_offset=810))
    graph.add(g.Store(src=vector, in_channels=6, out_offset=978))
    return graph


def nested():
    """A gate that decides whether another decides; each governs instructions of every kind, and the last logits."""
    graph, weights = g.Graph(), Weights()
    image, x, inner = graph.map(3, 8), graph.map(12, 8), graph.map(12, 8)
    vector, small, wide = graph.map(6, 1), graph.map(12, 4), graph.map(12, 8)
    graph.add(g.Load(dst=image, in_channels=3))
    graph.add(g.Conv2d(src=image, dst=x, window=WIDE, activation="relu", pool=True, **weights.conv(12, 3, 3)))
    graph.add(g.FullyConnected(src=x, dst=vector, activation="sigmoid", **weights.linear(6, 12)))
    graph.add(g.Decide(src=vector, in_channels=1, first_gate=0))
    graph.add(g.Linear(src=x, **weights.linear(5, 12)))
    graph.add(g.Pointwise(src=x, dst=wide, in_channels=12))
    outer, both = {"only_if": 0}, {"only_if": 1}
    graph.add(g.AvgPool(src=x, dst=small, in_channels=12, window=g.Window(2, 2, 2), **outer))
    graph.add(g.Upsample(src=small, dst=inner, in_channels=12, stride=2, **outer))
    graph.add(g.PoolSums(src=inner, in_channels=12, **outer))
    graph.add(g.FullyConnected(src=inner, dst=vector, activation="hardsigmoid", **outer, **weights.linear(6, 12)))
    graph.add(g.Decide(src=vector, in_channels=1, first_gate=1, src_offset=3, **outer))
    grouped = weights.conv(12, 4, 3) | {"in_channels": 12}
    graph.add(g.Conv2d(src=inner, dst=x, window=WIDE, groups=3, accumulate=True, **both, **grouped))
    graph.add(g.Pointwise(src=inner, dst=x, in_channels=12, factor=vector_of(graph, x), accumulate=True, **both))
    graph.add(g.Depthwise(src=x, dst=wide, window=WIDE, **outer, **weights.depthwise(12, 3)))
    graph.add(g.PoolSums(src=wide, in_channels=12))
    graph.add(g.Gate(src=wide, first_gate=2, **both, **weights.linear(1, 12)))
    graph.add(g.Linear(src=wide, only_if=2, **weights.linear(5, 12)))
    graph.add(g.Store(src=x, in_channels=12))
    return graph


def vector_of(graph, map):
    """A map whose pooled vector is known, of as many channels."""
    return next(i for i, m in enumerate(graph.maps) if i != map and m == graph.maps[map])


VOCABULARY = {
    **{name: (lambda case=case: convolution(*case[:4], groups=case[4])) for name, case in CONVOLUTIONS.items()},
    **{kind: (lambda kind=kind: activated(kind)) for kind in g.ACTIVATIONS},
    **{made.__name__: made for made in (excited, enlarged, joined, several)},
}
