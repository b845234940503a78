"""The instructions on maps, with their packed weights: convolutions, gates, linear maps, pools, what has no weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _C
from ..ops.network import Instruction
from ..ops.packed import Unit
from . import resample
from .conv2d import conv2d
from .gate import EMBEDDING, gate, recurrent_gate
from .head import linear
from .layout import Channels, pad
from .step import KINDS, OPS, Facts, Run, Step, has
from .tiles import UNIT, Window


class Load(Step):
    def forward(self, run: Run) -> None:
        run.put(self.step.dst, resample.as_rows(run.image, run.dtype, run.layouts[self.step.dst].places), self.pool)


class Store(Step):
    def forward(self, run: Run) -> None:
        m, layout = run.maps[self.step.src], run.layouts[self.step.src]
        x = m.data
        if m.taken is not None:  # a slice that was skipped holds nothing
            first = torch.ones(run.batch, layout.first, dtype=torch.bool, device=x.device)
            alive = torch.cat([first, (m.taken != 0).repeat_interleave(layout.width, 1)], 1)
            x = torch.where(alive[:, None], layout.gather(x), 0)
        else:
            x = run.filled(x, self.inputs)[..., : layout.first]
        run.map = resample.as_image(x, *run.sizes[self.step.src]).to(run.image.dtype).contiguous()


class Linear(Step):
    weight: Tensor
    bias: Tensor

    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        unit = facts.unit(step, _C.linear_layout(step.in_channels, step.out_channels))
        self._keep("weight", pad(pad(unit["weight"].T, 0), 1))
        self._keep("bias", pad(unit["bias"], 0))

    def forward(self, run: Run) -> None:
        step, m = self.step, run.maps[self.step.src]
        assert m.sums is not None
        logits, pixels = run.logits[:, step.out_offset :], run.pixels(step.src)
        sizes = (pixels, step.in_channels, step.out_channels)
        linear(m.sums, self.weight, self.bias, logits, run.macs, run.enabled, *sizes)


class Conv2d(Step):
    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        normalise, masked = has(step, "normalise"), step.out_mask >= 0
        sizes = (step.in_channels, step.out_channels, step.taps)
        unit = facts.unit(step, _C.conv2d_layout(*sizes, normalise, masked, has(step, "winograd")))
        if masked:  # [in][tap][out]
            weight = unit["weight"][..., : step.out_channels].permute(2, 0, 1)
        else:
            weight = unit.conv("weight", step.out_channels)
        self.window = _window(step)
        self.flat = step.taps > 1 and step.in_channels < UNIT and self.inputs < 0
        layout = Channels(step.in_channels)
        self._keep("weight", facts.matrix(weight, None if self.flat else layout), None)
        self._keep("bias", pad(unit["bias"][: step.out_channels], 0))
        self.normalise = normalise
        if normalise:
            self._keep("norm", torch.stack([layout.spread(unit[name], 0) for name in ("scale", "shift")]))

    def forward(self, run: Run) -> None:
        step = self.step
        source, to = run.maps[step.src], run.into(step.dst, self.pool)
        whole = step.out_offset == 0 and step.out_channels == run.layouts[step.dst].total
        accumulate, relu, pool = (has(step, name) for name in ("accumulate", "relu", "pool"))
        inputs, input_counts = run.chosen(self.inputs)
        chosen, chosen_counts = run.chosen(self.filters)
        conv2d(
            source.data[:, :, step.src_offset :],
            self.weight,
            self.bias,
            self.norm if self.normalise else None,
            to.data[:, :, step.out_offset :],
            to.sums[:, :, step.out_offset :] if pool and to.sums is not None else None,
            run.macs,
            run.enabled if step.only_if < 0 else run.words[step.only_if],
            inputs,
            input_counts,
            chosen,
            chosen_counts,
            *run.grouped(self.pattern),
            run.sizes[step.src],
            run.sizes[step.dst],
            self.window,
            step.in_channels,
            step.out_channels,
            run.layouts[step.dst].places if whole else step.out_channels,
            (step.relu_channels or step.out_channels) if relu else 0,
            accumulate,
            (accumulate and relu) or pool,
            False,
        )


def _window(step: Instruction) -> Window:
    if step.columns:
        return Window(step.taps, step.columns, step.stride, step.pad_rows, step.pad_columns)
    columns = math.isqrt(step.taps)
    return Window(step.taps, columns, step.stride, columns // 2, columns // 2)


class Subsample(Step):
    def forward(self, run: Run) -> None:
        step = self.step
        data = run.filled(run.maps[step.src].data, self.inputs)[:, :, : step.in_channels]
        places = run.layouts[step.dst].places
        y = resample.subsample(data, *run.sizes[step.src], step.stride, step.out_offset, places)
        run.put(step.dst, y, self.pool)


class Pool(Step):
    def forward(self, run: Run) -> None:
        step = self.step
        to, data = run.into(step.dst, self.pool), run.maps[step.src].data[:, :, : step.in_channels]
        window = (step.taps // step.columns, step.columns)
        average = OPS[step.op] == "avg_pool"
        padding = (step.pad_rows, step.pad_columns)
        small = resample.pool(data, *run.sizes[step.src], window, step.stride, padding, average)
        part = slice(step.out_offset, step.out_offset + step.in_channels)
        to.data[:, :, part] = small
        if to.sums is not None:
            to.sums[:, :, part] = resample.unit_sums(small)


class PoolSums(Step):
    def forward(self, run: Run) -> None:
        m = run.maps[self.step.src]
        m.sums = resample.unit_sums(run.filled(m.data, self.inputs))


class Tanh(Step):
    def forward(self, run: Run) -> None:
        run.maps[self.step.src].data.tanh_()


class Add(Step):
    def forward(self, run: Run) -> None:
        step = self.step
        source, to = run.maps[step.src].data, run.maps[step.dst].data
        part = run.filled(source[:, :, step.src_offset :], self.inputs)[:, :, : step.in_channels]
        to[:, :, step.out_offset : step.out_offset + step.in_channels] += part


class Gate(Step):
    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        self.recurrent = KINDS[step.gate] == "recurrent"
        unit = facts.unit(step, _C.gate_layout(step.in_channels, self.recurrent))
        self._keep("weight", unit["weight"] if self.recurrent else unit["weight"][0])
        self._keep("bias", unit["bias"])
        if self.recurrent:
            shared = Unit(facts.weights, step.shared, _C.recurrence_layout())
            for name in ("input", "hidden", "projection", "projection_bias"):
                self._keep(name, shared[name])
            self._keep("cell_bias", shared["bias"])

    def forward(self, run: Run) -> None:
        step, sums = self.step, run.maps[self.step.src].sums
        assert sums is not None
        own = step.first_gate
        decision = (
            run.thresholds[own : own + 1],
            None if run.forced is None else run.forced[:, own],
            run.taken[:, own],
            run.scores[:, own],
            run.words[own],
            run.enabled,
            run.macs,
        )
        if not self.recurrent:
            gate(sums, self.weight, self.bias, *decision, step.in_channels, run.pixels(step.src))
            return
        if run.state is None:
            run.state = sums.new_empty(run.batch, 2, EMBEDDING)
        shared = (self.input, self.hidden, self.cell_bias, self.projection, self.projection_bias)
        first = not has(step, "accumulate")
        recurrent_gate(sums, self.weight, self.bias, *shared, run.state, *decision, run.pixels(step.src), first)
