"""What a graph means, in plain torch: everything is computed, then masked."""

import math
from dataclasses import replace

import torch
from torch.nn import functional as F

from dsn_kernels import graph as g
from dsn_kernels.ops import Outputs
from tests.checks import assert_as_exact_as_torch, assert_gates_agree

_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
}


def run_graph(graph, image, thresholds, forced=None, dtype=torch.float64):
    """Outputs of a graph for image [B, C, H, W], all in ``dtype``; the MACs are those of the formula.

    Gates are taken as ``forced``, uint8 [B, L], says, or where a score exceeds its threshold [L]. A layer without a
    gate always runs.
    """
    return Reference(graph, image.to(dtype), thresholds, forced).run()


class Reference:
    """A graph's run, node by node: ``maps`` holds zeros where nothing is written."""

    def __init__(self, graph, image, thresholds, forced):
        self.graph, self.image, self.thresholds, self.forced = graph, image, thresholds, forced
        batch = len(image)
        self.maps = [image.new_zeros(batch, *map) for map in graph.maps]
        self.logits = image.new_zeros(batch, graph.logits)
        self.stored = image.new_zeros(batch, 0, 1, 1)
        self.taken = torch.zeros(batch, graph.gates, dtype=torch.uint8) if forced is None else forced.clone()
        self.scores = image.new_zeros(batch, graph.gates)
        self.memory = None  # of the LSTM: hidden and cell

    def run(self):
        for node in self.graph.nodes:
            self.step(node)
        macs = g.count_macs(self.graph, self.taken)
        return Outputs(self.logits, self.stored, self.taken, self.scores, macs)

    def step(self, node):
        getattr(self, f"_{node.op}")(node)

    def _own(self, value):
        return value.to(self.image.dtype)

    def _mask(self, first, channels):
        if first < 0:
            return self.image.new_ones(1, channels, 1, 1)
        return self._own(self.taken[:, first : first + channels, None, None])

    def _preact(self, x, norm):
        scale, shift = (self._own(part)[:, None, None] for part in norm)
        return (x * scale + shift).relu()

    def _source(self, node):
        first = getattr(node, "src_offset", 0)
        return self.maps[node.src][:, first : first + node.in_channels]

    def _put(self, node, value, first=0):
        self.maps[node.dst] = self.maps[node.dst].clone()
        self.maps[node.dst][:, first : first + value.shape[1]] = value

    def _set(self, gate, score, only_if=-1):
        runs = score >= -torch.inf if only_if < 0 else self.taken[:, only_if] != 0
        self.scores[:, gate] = torch.where(runs, score, 0)
        taken = score > self.thresholds[gate] if self.forced is None else self.forced[:, gate] != 0
        self.taken[:, gate] = (taken & runs).to(torch.uint8)

    def _load(self, node):
        shape = self.graph.maps[node.dst]._replace(channels=node.in_channels)
        own = slice(node.src_offset, node.src_offset + math.prod(shape))
        image = self.image.flatten(1)[:, own].view(len(self.image), *shape)
        self._put(node, image * self._mask(node.out_mask, node.in_channels))

    def _stem(self, node):
        self._put(node, F.conv2d(self.image, self._own(node.weight), padding=1))

    def _dense_block(self, node):
        x = self.maps[node.dst][:, : node.in_channels]
        for i, layer in enumerate(node.layers):
            gate = node.first_gate + i
            if node.gate == "none":
                self.scores[:, gate], self.taken[:, gate] = 1, 1
            else:
                z = (x.mean((2, 3)) * self._own(layer.gate)).sum(1) + self._own(layer.gate_bias)
                self._set(gate, (z + 0.5).clamp(0, 1) if node.gate == "hard" else z.sigmoid())
            y = self._preact(x, layer.norm)
            if layer.reduce is not None:
                y = F.conv2d(y, self._own(layer.reduce), self._own(layer.reduce_bias)).relu()
            y = F.conv2d(y, self._own(layer.conv), padding=1)
            if layer.expand is not None:
                y = F.conv2d((y + self._own(layer.conv_bias)[:, None, None]).relu(), self._own(layer.expand))
            y = torch.where(self.taken[:, gate, None, None, None] != 0, y, 0)
            x = x + y if node.merge == "add" else torch.cat([x, y], 1)
        self._put(node, x)

    def _transition(self, node):
        x = self._source(node)
        if node.guide >= 0:
            wide = F.interpolate(self.maps[node.guide], x.shape[2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, wide], 1)
        self._put(node, F.avg_pool2d(F.conv2d(self._preact(x, node.norm), self._own(node.weight)), 2))

    def _features(self, node):
        return self._preact(self._source(node), node.norm).mean((2, 3))

    def _classify(self, node, features):
        logits = F.linear(features, self._own(node.weight), self._own(node.bias))
        self.logits[:, node.out_offset : node.out_offset + node.out_channels] = logits

    def _head(self, node):
        self._classify(node, self._features(node))

    def _path_head(self, node):
        gates = self._own(self.taken[:, node.first_gate : node.first_gate + node.gates])
        gamma, beta = torch.einsum("pcl,bl->pbc", self._own(node.path), gates) + self._own(node.path_bias)[:, None]
        self._classify(node, (1 + gamma) * self._features(node) + beta)

    def _behind(self, node, x):
        """How far the last window reaches behind a map x: rows and columns."""
        window = node.window
        _, height, width = self.graph.maps[node.dst]
        return (
            (height - 1) * window.stride + window.dilation * (window.rows - 1) + 1 - window.pad_rows - x.shape[2],
            (width - 1) * window.stride + window.dilation * (window.columns - 1) + 1 - window.pad_columns - x.shape[3],
        )

    def _convolve(self, node, x, groups=1):
        window, (below, right) = node.window, self._behind(node, x)
        x = F.pad(x, (window.pad_columns, right, window.pad_rows, below))
        weight, bias = self._own(node.weight), self._own(node.bias)
        return F.conv2d(x, weight, bias, window.stride, 0, window.dilation, groups)

    def _where_open(self, node, y, before):
        if node.only_if < 0:
            return y
        open = self.taken[:, node.only_if].view(-1, *[1] * (y.dim() - 1))
        return torch.where(open != 0, y, before)

    def _finish(self, node, y):
        """Leaves y in a node's channels of dst: what was there is added, if so asked, and the activation follows."""
        before = self.maps[node.dst][:, node.out_offset : node.out_offset + y.shape[1]]
        if getattr(node, "accumulate", False):
            y = y + before
        count = getattr(node, "activated", 0) or y.shape[1]
        y = torch.cat([_ACTIVATIONS[node.activation](y[:, :count]), y[:, count:]], 1)
        self._put(node, self._where_open(node, y, before), node.out_offset)

    def _scaled(self, node, x):
        if node.factor < 0:
            return x
        return x * self.maps[node.factor][:, : node.in_channels].mean((2, 3), keepdim=True)

    def _depthwise(self, node):
        self._finish(node, self._convolve(node, self._source(node), groups=node.in_channels))

    def _pointwise(self, node):
        x = self._source(node)
        if node.affine is not None:
            scale, shift = (self._own(part)[:, None, None] for part in node.affine)
            x = x * scale + shift
        self._finish(node, self._scaled(node, x))

    def _upsample(self, node):
        self._finish(node, F.interpolate(self._source(node), scale_factor=node.stride, mode="nearest"))

    def _conv2d(self, node):
        x = self._source(node)
        if node.before is not None:
            x = self._preact(x, node.before)
        self._finish(node, self._convolve(node, x, node.groups) * self._mask(node.out_mask, node.out_channels))

    def _subsample(self, node):
        self.maps[node.dst] = torch.zeros_like(self.maps[node.dst])
        self._put(node, self._source(node)[:, :, :: node.stride, :: node.stride], node.out_offset)

    def _windows(self, node, x, outside):
        """The pixels of each window, [B, C, taps, height, width], with ``outside`` for those beyond the map."""
        window, (below, right) = node.window, self._behind(node, x)
        x = F.pad(x, (window.pad_columns, right, window.pad_rows, below), value=outside)
        windows = x.unfold(2, window.rows, window.stride).unfold(3, window.columns, window.stride)
        return windows.flatten(4).movedim(4, 2)

    def _pool(self, node, small):
        before = self.maps[node.dst][:, node.out_offset : node.out_offset + node.in_channels]
        small = small * self._mask(node.out_mask, node.in_channels)
        self._put(node, self._where_open(node, small, before), node.out_offset)

    def _max_pool(self, node):
        self._pool(node, self._windows(node, self._source(node), -torch.inf).amax(2))

    def _avg_pool(self, node):
        x, window = self._source(node), node.window
        counted = torch.ones_like(x)
        if node.count_padding:
            ahead, behind = (window.pad_rows, window.pad_columns), (window.more_rows, window.more_columns)
            right, below = ahead[1] + behind[1], ahead[0] + behind[0]
            inside = F.pad(counted, (ahead[1], right, ahead[0], below), value=1.0)
            whole = replace(node, window=window._replace(pad_rows=0, pad_columns=0))
            count = self._windows(whole, inside, 0.0).sum(2)
        else:
            count = self._windows(node, counted, 0.0).sum(2)
        self._pool(node, self._windows(node, x, 0.0).sum(2) / count)

    def _pool_sums(self, node):
        pass

    def _gate(self, node):
        x = F.linear(self._source(node).mean((2, 3)), self._own(node.weight), self._own(node.bias))
        if node.recurrence is not None:
            input, hidden, bias, projection, projection_bias = (self._own(part) for part in node.recurrence)
            if not node.follows:
                self.memory = (torch.zeros_like(x), torch.zeros_like(x))
            self.memory = torch.lstm_cell(x, self.memory, input, hidden, bias, torch.zeros_like(bias))
            x = F.linear(self.memory[0], projection[None], projection_bias)
        self._set(node.first_gate, x[:, 0].sigmoid(), node.only_if)

    def _decide(self, node):
        vector = self._source(node).mean((2, 3))
        for i in range(node.in_channels):
            self._set(node.first_gate + i, vector[:, i], node.only_if)

    def _linear(self, node):
        y = F.linear(self._source(node).mean((2, 3)), self._own(node.weight), self._own(node.bias))
        own = slice(node.out_offset, node.out_offset + node.out_channels)
        self.logits[:, own] = self._where_open(node, _ACTIVATIONS[node.activation](y), self.logits[:, own])

    def _fully_connected(self, node):
        y = F.linear(self._source(node).mean((2, 3)), self._own(node.weight), self._own(node.bias))
        self._finish(node, y[:, :, None, None])

    def _store(self, node):
        x = self._source(node)
        if node.out_offset:  # one behind another
            x = torch.cat([self.stored.flatten(1), x.flatten(1)], 1)[:, :, None, None]
        self.stored = x


@torch.no_grad()
def check_graph(runner, graph, image, dtype, forced=None, device="cpu"):
    """Outputs, gates, scores and MACs of ``runner(image, thresholds, forced)``, in ``dtype`` on ``device``."""
    thresholds = torch.full((graph.gates,), 0.5)
    gates = None if forced is None else forced.to(device)
    actual = runner(image.to(device), thresholds.to(device), gates)
    out = Outputs(*(part.cpu() for part in actual))
    exact = run_graph(graph, image, thresholds, out.gates if forced is None else forced)
    assert torch.equal(out.gates, exact.gates)
    same = run_graph(graph, image, thresholds, out.gates, dtype)
    for name in ("logits", "map"):
        if getattr(exact, name).numel():
            assert_as_exact_as_torch(*(getattr(outputs, name) for outputs in (out, same, exact)))
    decided = [node for node in graph.nodes if isinstance(node, (g.Gate, g.Decide, g.DenseBlock))]
    if dtype == torch.float32 and decided and forced is None:
        assert_gates_agree(out.gates, out.scores, exact.scores, 0.5)
    elif dtype == torch.float32 and decided:
        torch.testing.assert_close(out.scores.double(), exact.scores, rtol=0, atol=2e-5)
    assert torch.equal(out.macs, exact.macs), "the kernels count what the formula says"
    return actual
