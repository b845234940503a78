"""The nodes on maps: convolutions, gates, linear maps, pools, what has no weights."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from dsn_models.errors import UserError

from ..graph import nodes
from . import resample
from .conv2d import conv2d
from .gate import EMBEDDING, gate, recurrent_gate
from .head import linear
from .layout import Channels, pad
from .step import Facts, Run, Step, pack_norm
from .tiles import UNIT


class Load(Step, serves=[nodes.Load]):
    def __init__(self, node: nodes.Load, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.src_offset = node.src_offset

    def forward(self, run: Run) -> None:
        shape = (self.in_channels, *run.sizes[self.dst])
        image = run.image.flatten(1)[:, self.src_offset : self.src_offset + prod(shape)].unflatten(1, shape)
        run.put(self.dst, resample.as_rows(image, run.dtype, run.layouts[self.dst].places), self.pool)


class Store(Step, serves=[nodes.Store]):
    """Of several tensors that leave, each behind those before it."""

    reads_slices = True

    def __init__(self, node: nodes.Store, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.out_offset = node.out_offset

    def forward(self, run: Run) -> None:
        m, layout = run.maps[self.src], run.layouts[self.src]
        x = m.data
        if m.taken is not None:  # a slice that was skipped holds nothing
            first = torch.ones(run.batch, layout.first, dtype=torch.bool, device=x.device)
            alive = torch.cat([first, (m.taken != 0).repeat_interleave(layout.width, 1)], 1)
            x = torch.where(alive[:, None], layout.gather(x), 0)
        else:
            x = run.filled(x, self.inputs)
        map = resample.as_image(x[..., : self.in_channels], *run.sizes[self.src]).to(run.image.dtype).contiguous()
        if self.out_offset:
            map = torch.cat([run.map.flatten(1), map.flatten(1)], 1)[:, :, None, None]
        run.map = map


class Linear(Step, serves=[nodes.Linear, nodes.FullyConnected]):
    """To logits, or to the pooled vector of a map of one pixel, whose channel sums it is."""

    waits = True
    weight: Tensor
    bias: Tensor

    def __init__(self, node: nodes.Linear, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.out_channels, self.out_offset, self.activation = node.out_channels, node.out_offset, node.activation
        self._keep("weight", pad(pad(node.weight.T, 0), 1))
        self._keep("bias", pad(node.bias, 0))

    def forward(self, run: Run) -> None:
        sums, out = run.maps[self.src].sums, run.logits
        assert sums is not None
        if self.dst >= 0:
            vector = run.into(self.dst, True).sums
            assert vector is not None
            out = vector[:, 0]
        sizes, words = (run.pixels(self.src), self.in_channels, self.out_channels), self._words(run)
        linear(sums, self.weight, self.bias, out[:, self.out_offset :], run.macs, words, *sizes, self.activation)


class Conv2d(Step, serves=[nodes.Conv2d]):
    waits = True
    norm: Tensor | None

    def __init__(self, node: nodes.Conv2d, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.window, taps = node.window[:6], node.window.taps
        if node.before is not None and taps > 1 and self.inputs >= 0:
            raise UserError(
                f"{node.where or node.op}: a BN-ReLU before {taps} taps is not served where channels may hold no data; "
                "expected a 1x1"
            )
        if node.groups > 1 and max(self.inputs, self.filters) >= 0:
            raise UserError(
                f"{node.where or node.op}: {node.groups} groups are not served where channels or filters are chosen; "
                "expected 1"
            )
        self.src_offset, self.out_offset, self.out_channels = node.src_offset, node.out_offset, node.out_channels
        self.groups, self.accumulate, self.leaves_sums = node.groups, node.accumulate, node.pool
        self.activation, self.activated = node.activation, node.activated
        # Filters that are off get sum and activation all the same, and their channels' sums are zeros.
        self.finish_off = (node.accumulate and node.activation != "none") or node.pool
        depth, destination = node.in_channels // node.groups, facts.layouts[node.dst]
        whole = node.out_offset == 0 and node.out_channels == destination.total and node.groups == 1
        self.stored = destination.places if whole else node.out_channels
        flat = taps > 1 and depth < UNIT and self.inputs < 0 and node.before is None
        layout = None if flat else Channels(depth)
        weights = [facts.matrix(part, layout) for part in node.weight.chunk(node.groups)]
        self._keep("weight", torch.cat(weights, 1), facts.dtype)
        self._keep("bias", torch.cat([pad(part, 0) for part in node.bias.chunk(node.groups)]))
        if node.before is None:
            self.norm = None
        else:
            parts = zip(*(part.chunk(node.groups) for part in node.before), strict=True)
            self._keep("norm", torch.cat([pack_norm(nodes.Affine(*part), Channels(depth)) for part in parts], 1))

    def forward(self, run: Run) -> None:
        source, to = run.maps[self.src], run.into(self.dst, self.pool)
        conv2d(
            source.data[:, :, self.src_offset :],
            self.weight,
            self.bias,
            self.norm,
            to.data[:, :, self.out_offset :],
            to.sums[:, :, self.out_offset :] if self.leaves_sums and to.sums is not None else None,
            run.macs,
            self._words(run),
            *run.chosen(self.inputs),
            *run.chosen(self.filters),
            *run.grouped(self.pattern),
            run.sizes[self.src],
            run.sizes[self.dst],
            self.window,
            self.in_channels,
            self.out_channels,
            self.stored,
            self.groups,
            self.activation,
            self.activated,
            self.accumulate,
            self.finish_off,
            False,
        )


class Subsample(Step, serves=[nodes.Subsample]):
    def __init__(self, node: nodes.Subsample, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.stride, self.out_offset = node.stride, node.out_offset

    def forward(self, run: Run) -> None:
        data = self._filled(run, 0)
        places = run.layouts[self.dst].places
        y = resample.subsample(data, *run.sizes[self.src], self.stride, self.out_offset, places)
        run.put(self.dst, y, self.pool)


class Pool(Step, serves=[nodes.MaxPool, nodes.AvgPool]):
    waits = True

    def __init__(self, node: nodes.Pool, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        if node.window.dilation > 1:
            raise UserError(f"{node.where or node.op}: a pool of dilation {node.window.dilation}; expected 1")
        self.window = node.window
        self.average, self.count_padding = isinstance(node, nodes.AvgPool), getattr(node, "count_padding", False)
        self.read = slice(node.src_offset, node.src_offset + node.in_channels)
        self.part = slice(node.out_offset, node.out_offset + node.in_channels)

    def forward(self, run: Run) -> None:
        to, data = run.into(self.dst, self.pool), run.maps[self.src].data[:, :, self.read]
        sizes = run.sizes[self.src], run.sizes[self.dst]
        if self.average:
            small = resample.avg_pool(data, *sizes, self.window, self.count_padding)
        else:
            small = resample.max_pool(data, *sizes, self.window)
        self._write(run, to.data[:, :, self.part], small)
        if to.sums is not None:
            self._write(run, to.sums[:, :, self.part], resample.unit_sums(small))


class PoolSums(Step, serves=[nodes.PoolSums]):
    waits = True

    def forward(self, run: Run) -> None:
        m = run.maps[self.src]
        if m.sums is not None:  # else nobody reads them
            self._write(run, m.sums[:, :, : self.in_channels], resample.unit_sums(self._filled(run, 0)))


class Gate(Step, serves=[nodes.Gate]):
    waits = True

    def __init__(self, node: nodes.Gate, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.first_gate, self.follows, self.recurrent = node.first_gate, node.follows, node.recurrence is not None
        self._keep("weight", node.weight if self.recurrent else node.weight[0])
        self._keep("bias", node.bias)
        if node.recurrence is not None:
            self._keep_list("recurrence", list(node.recurrence))

    def forward(self, run: Run) -> None:
        sums, own = run.maps[self.src].sums, self.first_gate
        assert sums is not None
        decision = (
            run.thresholds[own : own + 1],
            None if run.forced is None else run.forced[:, own],
            run.taken[:, own],
            run.scores[:, own],
            run.words[own],
            self._words(run),
            run.macs,
        )
        pixels = run.pixels(self.src)
        if not self.recurrent:
            gate(sums, self.weight, self.bias, *decision, self.in_channels, pixels)
            return
        if run.state is None:
            run.state = sums.new_zeros(run.batch, 2, EMBEDDING)
        shared = self._list("recurrence")
        recurrent_gate(sums, self.weight, self.bias, *shared, run.state, *decision, pixels, not self.follows)
