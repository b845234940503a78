"""The instructions of dense networks, with their packed weights: stem, dense block, transition, head."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from ..ops.network import Instruction
from ..ops.packed import Unit
from . import resample
from .conv2d import conv2d
from .dense_block import dense_block
from .head import head, linear, path_features
from .layout import Channels, pad, padded
from .preact_conv2d import preact_conv2d
from .step import KINDS, Facts, Map, Run, Step
from .tiles import THREE


class Stem(Step):
    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        unit = facts.unit(step, _C.stem_layout(step.in_channels, step.out_channels))
        weight = unit.conv("weight", step.out_channels)
        flat = step.in_channels < 16
        matrix = facts.matrix(weight, None if flat else Channels(step.in_channels))
        self._keep("weight", matrix, None)
        self._keep("bias", torch.zeros(matrix.shape[1]))

    def forward(self, run: Run) -> None:
        step = self.step
        height, width = run.sizes[step.dst]
        to = run.into(step.dst, self.pool)
        conv2d(
            resample.as_rows(run.image, run.dtype, step.in_channels),
            self.weight,
            self.bias,
            None,
            to.data,
            to.sums,
            run.macs,
            run.enabled,
            None,
            None,
            None,
            None,
            None,
            None,
            (height, width),
            (height, width),
            THREE,
            step.in_channels,
            step.out_channels,
            run.layouts[step.dst].first_places,
            0,
            False,
            False,
            False,
        )


class DenseBlock(Step):
    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        self.kind, self.concat = KINDS[step.gate], step.merge == _C.MERGES["concat"]
        self.layout = facts.layouts[step.dst]
        lists: dict[str, list[Tensor]] = {name: [] for name in ("norm", "reduce", "reduce_bias", "constants")}
        lists |= {name: [] for name in ("conv", "conv_bias", "expand", "expand_bias")}
        gates, biases, offset = [], [], 0
        for layer in range(step.layers):
            before = self.layout.before(layer)
            cpu = _C.dense_layer_layout(before.total, step.out_channels, step.bottleneck, layer, step.merge)
            unit = facts.unit(step, cpu, offset)
            offset += unit.size
            gate = before.spread(unit["gate"], 0)
            gates.append(torch.cat([gate, gate.new_zeros(self.layout.places - len(gate))]))
            biases.append(unit["gate_bias"])
            for name, value in self._layer(step, facts, unit, before).items():
                lists[name].append(value)
        self._keep("gate_weight", torch.stack(gates))
        self._keep("gate_bias", torch.cat(biases))
        for name, values in lists.items():
            self._keep_list(name, values, None if name in ("reduce", "conv", "expand") else torch.float32)

    def _layer(self, step: Instruction, facts: Facts, unit: Unit, before: Channels) -> dict[str, Tensor]:
        inner = Channels(step.bottleneck)
        out_channels = step.out_channels if self.concat else step.bottleneck
        conv = unit.conv("conv", out_channels)
        fields = {"norm": torch.stack([before.spread(unit[name], 0) for name in ("scale", "shift")])}
        if step.bottleneck:
            fields["reduce"] = facts.matrix(unit.conv("reduce", step.bottleneck), before)
            fields["reduce_bias"] = pad(unit["reduce_bias"][: step.bottleneck], 0)
            fields["conv"] = facts.matrix(conv, inner)
        else:
            fields["conv"] = facts.matrix(conv, before)
        if self.concat:
            width = step.bottleneck or step.out_channels
            constants = unit["constants"][..., :width].unflatten(0, (-1, 1)) if step.bottleneck else unit["constants"]
            fields["constants"] = pad(constants[..., :width], 2)
            fields["conv_bias"] = torch.zeros(fields["conv"].shape[1])
            return fields
        fields["conv_bias"] = pad(unit["conv_bias"][: step.bottleneck], 0)
        fields["expand"] = facts.matrix(unit.conv("expand", step.in_channels), inner)
        fields["expand_bias"] = torch.zeros(fields["expand"].shape[1])
        return fields

    def forward(self, run: Run) -> None:
        step, m = self.step, run.maps[self.step.dst]
        assert m.sums is not None
        columns = slice(step.first_gate, step.first_gate + step.layers)
        pooled = m.sums.new_empty(run.batch, self.layout.places)
        live = torch.arange(self.layout.groups, dtype=torch.int32, device=pooled.device).repeat(run.batch, 1)
        counts = torch.full_like(live[:, 0], self.layout.first_groups)
        dense_block(
            m.data,
            m.sums,
            pooled,
            live,
            counts,
            run.taken[:, columns],
            run.scores[:, columns],
            run.words[columns],
            run.macs,
            run.thresholds[columns],
            None if run.forced is None else run.forced[:, columns],
            run.enabled,
            self.gate_weight,
            self.gate_bias,
            self._list("norm"),
            self._list("reduce"),
            self._list("reduce_bias"),
            self._list("constants"),
            self._list("conv"),
            self._list("conv_bias"),
            self._list("expand"),
            self._list("expand_bias"),
            *run.sizes[step.dst],
            step.in_channels,
            step.out_channels,
            step.bottleneck,
            self.kind,
            self.concat,
        )
        if self.concat:
            m.live, m.live_counts, m.taken = live, counts, run.taken[:, columns]


class Transition(Step):
    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        layouts = [facts.layouts[step.src], *([facts.layouts[step.guide]] if step.guide >= 0 else [])]
        slices = sum(c.slices for c in layouts)
        unit = facts.unit(step, _C.transition_layout(sum(c.total for c in layouts), step.out_channels, slices))
        weight, constants = unit.conv("weight", step.out_channels), unit["constants"][:, None, : step.out_channels]
        first_channel = first_slice = 0
        for i, layout in enumerate(layouts):
            channels = slice(first_channel, first_channel + layout.total)
            own = slice(first_slice, first_slice + layout.slices)
            norm = torch.stack([layout.spread(unit[name][channels], 0) for name in ("scale", "shift")])
            self._keep(f"norm{i}", norm)
            self._keep(f"weight{i}", facts.matrix(weight[:, channels], layout), None)
            self._keep(f"constants{i}", pad(constants[own], 2))
            first_channel, first_slice = channels.stop, own.stop
        self._keep("bias", torch.zeros(padded(step.out_channels)))

    def forward(self, run: Run) -> None:
        step = self.step
        source, to = run.maps[step.src], run.into(step.dst, self.pool)
        height, width = run.sizes[step.src]
        if step.guide < 0:
            self._convolve(run, 0, source, source.data, to.data, to.sums, step.src, False)
            return
        # The sum of both parts is rounded once.
        total = torch.empty_like(to.data, dtype=torch.float32)
        guide = run.maps[step.guide]
        wide = resample.upsample(guide.data, *run.sizes[step.guide], height, width)
        self._convolve(run, 0, source, source.data, total, None, step.src, False)
        self._convolve(run, 1, guide, wide, total, to.sums, step.guide, True)
        to.data.copy_(total)

    def _convolve(
        self,
        run: Run,
        part: int,
        source: Map,
        data: Tensor,
        dst: Tensor,
        sums: Tensor | None,
        buffer: int,
        accumulate: bool,
    ) -> None:
        layout, skippable = run.layouts[buffer], source.taken is not None
        inputs, counts, group = self._inputs(run, source, layout)
        preact_conv2d(
            data,
            getattr(self, f"norm{part}"),
            getattr(self, f"weight{part}"),
            self.bias,
            getattr(self, f"constants{part}") if skippable else None,
            dst[..., : run.layouts[self.step.dst].first_places],
            sums,
            run.macs,
            run.enabled,
            source.taken,
            inputs,
            counts,
            *run.sizes[self.step.src],
            layout.total,
            self.step.out_channels,
            group,
            layout.first,
            layout.width,
            accumulate,
        )


class Head(Step):
    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        layout = facts.layouts[step.src]
        unit = facts.unit(step, _C.head_layout(layout.total, step.out_channels, layout.slices))
        self._keep("norm", torch.stack([layout.spread(unit[name], 0) for name in ("scale", "shift")]))
        self._keep("weight", pad(layout.spread(unit["weight"], 0), 1))
        self._keep("bias", pad(unit["bias"], 0))
        self._keep("constants", pad(unit["constants"], 1))

    def forward(self, run: Run) -> None:
        step, m, layout = self.step, run.maps[self.step.src], run.layouts[self.step.src]
        inputs, counts, group = self._inputs(run, m, layout)
        head(
            m.data,
            self.norm,
            self.weight,
            self.bias,
            None if m.taken is None else self.constants,
            run.logits[:, step.out_offset :],
            run.macs,
            run.enabled,
            m.taken,
            inputs,
            counts,
            run.pixels(step.src),
            layout.total,
            step.out_channels,
            group,
            layout.first,
            layout.width,
        )


class PathHead(Step):
    weight: Tensor
    bias: Tensor

    def __init__(self, index: int, facts: Facts) -> None:
        super().__init__(index, facts)
        step = self.step
        layout = facts.layouts[step.src]
        unit = facts.unit(step, _C.path_head_layout(layout.total, step.out_channels, step.layers))
        self._keep("norm", torch.stack([layout.spread(unit[name], 0) for name in ("scale", "shift")]))
        self._keep("path", layout.spread(unit["path"], 2))
        self._keep("path_bias", layout.spread(unit["path_bias"], 1))
        self._keep("weight", pad(pad(unit["weight"], 0), 1))
        self._keep("bias", pad(unit["bias"], 0))

    def forward(self, run: Run) -> None:
        step, m, layout = self.step, run.maps[self.step.src], run.layouts[self.step.src]
        features = run.logits.new_empty(run.batch, 1, layout.places)
        path_gates = run.taken[:, step.first_gate : step.first_gate + step.layers]
        path_features(
            m.data,
            self.norm,
            self.path,
            self.path_bias,
            features,
            run.macs,
            run.enabled,
            path_gates,
            m.taken,
            layout.total,
            layout.group,
            layout.first,
            layout.width,
        )
        logits = run.logits[:, step.out_offset :]
        sizes = (1, layout.total, step.out_channels)
        linear(layout.gather(features), self.weight, self.bias, logits, run.macs, run.enabled, *sizes)
