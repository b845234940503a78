"""The nodes on maps: convolutions, gates, linear maps, pools, what has no weights."""

from __future__ import annotations

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
    def forward(self, run: Run) -> None:
        run.put(self.dst, resample.as_rows(run.image, run.dtype, run.layouts[self.dst].places), self.pool)


class Store(Step, serves=[nodes.Store]):
    def forward(self, run: Run) -> None:
        m, layout = run.maps[self.src], run.layouts[self.src]
        x = m.data
        if m.taken is not None:  # a slice that was skipped holds nothing
            first = torch.ones(run.batch, layout.first, dtype=torch.bool, device=x.device)
            alive = torch.cat([first, (m.taken != 0).repeat_interleave(layout.width, 1)], 1)
            x = torch.where(alive[:, None], layout.gather(x), 0)
        else:
            x = run.filled(x, self.inputs)
        run.map = resample.as_image(x[..., : self.in_channels], *run.sizes[self.src]).to(run.image.dtype).contiguous()


class Linear(Step, serves=[nodes.Linear]):
    weight: Tensor
    bias: Tensor

    def __init__(self, node: nodes.Linear, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.out_channels, self.out_offset = node.out_channels, node.out_offset
        self._keep("weight", pad(pad(node.weight.T, 0), 1))
        self._keep("bias", pad(node.bias, 0))

    def forward(self, run: Run) -> None:
        sums = run.maps[self.src].sums
        assert sums is not None
        sizes = (run.pixels(self.src), self.in_channels, self.out_channels)
        linear(sums, self.weight, self.bias, run.logits[:, self.out_offset :], run.macs, run.enabled, *sizes)


class Conv2d(Step, serves=[nodes.Conv2d]):
    norm: Tensor | None

    def __init__(self, node: nodes.Conv2d, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.window, taps = node.window, node.window.taps
        if node.before is not None and taps > 1 and self.inputs >= 0:
            raise UserError(
                f"{node.where or node.op}: a BN-ReLU before {taps} taps is not served where channels may hold no data; "
                "expected a 1x1"
            )
        self.src_offset, self.out_offset, self.out_channels = node.src_offset, node.out_offset, node.out_channels
        self.only_if, self.accumulate, self.leaves_sums = node.only_if, node.accumulate, node.pool
        self.relu_filters = (node.relu_channels or node.out_channels) if node.relu else 0
        # Filters that are off get sum and ReLU all the same, and their channels' sums are zeros.
        self.finish_off = (node.accumulate and node.relu) or node.pool
        layout, destination = Channels(node.in_channels), facts.layouts[node.dst]
        whole = node.out_offset == 0 and node.out_channels == destination.total
        self.stored = destination.places if whole else node.out_channels
        flat = taps > 1 and node.in_channels < UNIT and self.inputs < 0
        self._keep("weight", facts.matrix(node.weight, None if flat else layout), facts.dtype)
        self._keep("bias", pad(node.bias, 0))
        if node.before is None:
            self.norm = None
        else:
            self._keep("norm", pack_norm(node.before, layout))

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
            run.enabled if self.only_if < 0 else run.words[self.only_if],
            *run.chosen(self.inputs),
            *run.chosen(self.filters),
            *run.grouped(self.pattern),
            run.sizes[self.src],
            run.sizes[self.dst],
            self.window,
            self.in_channels,
            self.out_channels,
            self.stored,
            self.relu_filters,
            self.accumulate,
            self.finish_off,
            False,
        )


class Subsample(Step, serves=[nodes.Subsample]):
    def __init__(self, node: nodes.Subsample, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.stride, self.out_offset = node.stride, node.out_offset

    def forward(self, run: Run) -> None:
        data = run.filled(run.maps[self.src].data, self.inputs)[:, :, : self.in_channels]
        places = run.layouts[self.dst].places
        y = resample.subsample(data, *run.sizes[self.src], self.stride, self.out_offset, places)
        run.put(self.dst, y, self.pool)


class Pool(Step, serves=[nodes.MaxPool, nodes.AvgPool]):
    def __init__(self, node: nodes.Pool, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.window, self.average = node.window, isinstance(node, nodes.AvgPool)
        self.part = slice(node.out_offset, node.out_offset + node.in_channels)

    def forward(self, run: Run) -> None:
        to, data = run.into(self.dst, self.pool), run.maps[self.src].data[:, :, : self.in_channels]
        small = resample.pool(data, *run.sizes[self.src], self.window, self.average)
        to.data[:, :, self.part] = small
        if to.sums is not None:
            to.sums[:, :, self.part] = resample.unit_sums(small)


class PoolSums(Step, serves=[nodes.PoolSums]):
    def forward(self, run: Run) -> None:
        m = run.maps[self.src]
        m.sums = resample.unit_sums(run.filled(m.data, self.inputs))


class Tanh(Step, serves=[nodes.Tanh]):
    def forward(self, run: Run) -> None:
        run.maps[self.src].data.tanh_()


class Add(Step, serves=[nodes.Add]):
    def __init__(self, node: nodes.Add, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.src_offset = node.src_offset
        self.part = slice(node.out_offset, node.out_offset + node.in_channels)

    def forward(self, run: Run) -> None:
        source = run.maps[self.src].data[:, :, self.src_offset :]
        run.maps[self.dst].data[:, :, self.part] += run.filled(source, self.inputs)[:, :, : self.in_channels]


class Gate(Step, serves=[nodes.Gate]):
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
            run.enabled,
            run.macs,
        )
        pixels = run.pixels(self.src)
        if not self.recurrent:
            gate(sums, self.weight, self.bias, *decision, self.in_channels, pixels)
            return
        if run.state is None:
            run.state = sums.new_empty(run.batch, 2, EMBEDDING)
        shared = self._list("recurrence")
        recurrent_gate(sums, self.weight, self.bias, *shared, run.state, *decision, pixels, not self.follows)
