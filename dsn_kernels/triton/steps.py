"""A plan's instructions as modules that hold their packed weights and call one operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsn_models.errors import UserError

from .. import _C
from ..nn.cuda_packing import Unit
from ..ops.network import Instruction, Plan
from . import resample
from .conv2d import conv2d, units_of
from .dense_block import dense_block
from .gate import EMBEDDING, gate, recurrent_gate
from .head import head
from .layout import Channels, pad, padded
from .preact_conv2d import preact_conv2d
from .routing import partition

_OPS = {code: name for name, code in _C.OPS.items()}
_KINDS = {code: name for name, code in _C.GATES.items()}


def _is(step: Instruction, flag: str) -> bool:
    return bool(step.flags & _C.FLAGS[flag])


class Facts:
    """What the instructions of a plan know of each other.

    Args:
        plan: of the CPU kernels.
        weights: float64, packed for it.
        dtype: of weights and maps.
    """

    def __init__(self, plan: Plan, weights: Tensor, dtype: torch.dtype) -> None:
        self.plan, self.weights, self.dtype = plan, weights, dtype
        self.layouts = [Channels(channels) for channels, _, _ in plan.buffers]
        self.pooled = {step.src for step in plan.code if _OPS[step.op] in ("gate", "linear")}
        masks = set()
        for step in plan.code:
            if _OPS[step.op] == "dense_block":
                concat = step.merge == _C.MERGES["concat"]
                self.layouts[step.dst] = Channels(
                    step.in_channels, *((step.layers, step.out_channels) if concat else ())
                )
                self.pooled.add(step.dst)
            if step.out_mask >= 0:
                masks.add((step.out_mask, step.out_channels))
        self.masks = sorted(masks)

    def unit(self, step: Instruction, layout: Any, offset: int = 0) -> Unit:
        return Unit(self.weights, step.weights + offset, layout)

    def matrix(self, weight: Tensor, channels: Channels | None = None) -> Tensor:
        """[O, I, taps] to [taps * places, columns]; without a layout the channels stay side by side."""
        if channels is not None:
            weight = channels.spread(weight, 1)
        return pad(weight.permute(2, 1, 0).flatten(0, 1), 1).to(self.dtype)


@dataclass
class Map:
    """A buffer's data [B, pixels, places] and, if gates read it, channel sums [B, units, places]; of a dense block's
    state the live groups and the block's part of ``taken``."""

    data: Tensor
    sums: Tensor | None = None
    live: Tensor | None = None
    live_counts: Tensor | None = None
    taken: Tensor | None = None


@dataclass
class Run:
    """One call: what goes in, what comes out and the maps between."""

    image: Tensor
    dtype: torch.dtype
    sizes: list[tuple[int, int]]
    layouts: list[Channels]
    thresholds: Tensor
    forced: Tensor | None
    enabled: Tensor | None
    logits: Tensor
    taken: Tensor
    scores: Tensor
    words: Tensor
    macs: Tensor
    map: Tensor
    maps: dict[int, Map] = field(default_factory=dict)
    lists: Tensor | None = None
    list_counts: Tensor | None = None
    state: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.image.shape[0]

    def pixels(self, buffer: int) -> int:
        height, width = self.sizes[buffer]
        return height * width

    def put(self, buffer: int, data: Tensor, pooled: bool) -> None:
        self.maps[buffer] = Map(data, resample.unit_sums(data) if pooled else None)

    def into(self, buffer: int, pooled: bool) -> Map:
        """The buffer's map, made if it is not there."""
        if buffer not in self.maps:
            pixels, places = self.pixels(buffer), self.layouts[buffer].places
            data = torch.empty(self.batch, pixels, places, dtype=self.dtype, device=self.image.device)
            sums = None
            if pooled:
                sums = torch.empty(self.batch, units_of(pixels), places, device=self.image.device)
            self.maps[buffer] = Map(data, sums)
        return self.maps[buffer]

    def choose(self, segments: Tensor) -> None:
        """Takes the forced gates as masks and lists each one's chosen filters."""
        assert self.forced is not None
        self.taken = (self.forced != 0).to(torch.uint8)
        self.lists = torch.empty_like(self.taken, dtype=torch.int32)
        self.list_counts = self.lists.new_empty(self.batch, len(segments))
        partition(self.taken, segments, self.lists, self.list_counts)


class Step(nn.Module):
    """An instruction of a plan.

    Args:
        step: the instruction.
        facts: of its plan.
    """

    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__()
        self.step = step
        self.pool = step.dst in facts.pooled
        self._lists: dict[str, int] = {}

    def _keep(self, name: str, value: Tensor, dtype: torch.dtype | None = torch.float32) -> None:
        value = value if dtype is None else value.to(dtype)
        self.register_buffer(name, value.contiguous(), persistent=False)

    def _keep_list(self, name: str, values: list[Tensor], dtype: torch.dtype | None = torch.float32) -> None:
        self._lists[name] = len(values)
        for i, value in enumerate(values):
            self._keep(f"{name}{i}", value, dtype)

    def _list(self, name: str) -> list[Tensor]:
        return [getattr(self, f"{name}{i}") for i in range(self._lists[name])]


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
            x = x[..., : layout.first]
        run.map = resample.as_image(x, *run.sizes[self.step.src]).to(run.image.dtype).contiguous()


class Stem(Step):
    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__(step, facts)
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
            height,
            width,
            1,
            9,
            step.in_channels,
            step.out_channels,
            run.layouts[step.dst].first_places,
            0,
            False,
            False,
        )


class DenseBlock(Step):
    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__(step, facts)
        self.kind, self.concat = _KINDS[step.gate], step.merge == _C.MERGES["concat"]
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
    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__(step, facts)
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
            source.live,
            source.live_counts,
            *run.sizes[self.step.src],
            layout.total,
            self.step.out_channels,
            layout.group,
            layout.first,
            layout.width,
            accumulate,
        )


class Head(Step):
    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__(step, facts)
        layout = facts.layouts[step.src]
        unit = facts.unit(step, _C.head_layout(layout.total, step.out_channels, layout.slices))
        self._keep("norm", torch.stack([layout.spread(unit[name], 0) for name in ("scale", "shift")]))
        self._keep("weight", pad(layout.spread(unit["weight"], 0), 1))
        self._keep("bias", pad(unit["bias"], 0))
        self._keep("constants", pad(unit["constants"], 1))

    def forward(self, run: Run) -> None:
        step, m, layout = self.step, run.maps[self.step.src], run.layouts[self.step.src]
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
            m.live,
            m.live_counts,
            run.pixels(step.src),
            layout.total,
            step.out_channels,
            layout.group,
            layout.first,
            layout.width,
        )


class Linear(Step):
    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__(step, facts)
        unit = facts.unit(step, _C.linear_layout(step.in_channels, step.out_channels))
        self._keep("weight", pad(pad(unit["weight"].T, 0), 1))
        self._keep("bias", pad(unit["bias"], 0))

    def forward(self, run: Run) -> None:
        step, m = self.step, run.maps[self.step.src]
        assert m.sums is not None
        head(
            m.sums,
            None,
            self.weight,
            self.bias,
            None,
            run.logits[:, step.out_offset :],
            run.macs,
            run.enabled,
            None,
            None,
            None,
            run.pixels(step.src),
            step.in_channels,
            step.out_channels,
            16,
            step.in_channels,
            0,
        )


class Conv2d(Step):
    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__(step, facts)
        normalise, masked = _is(step, "normalise"), step.out_mask >= 0
        sizes = (step.in_channels, step.out_channels, step.taps)
        unit = facts.unit(step, _C.conv2d_layout(*sizes, normalise, masked, _is(step, "winograd")))
        if masked:  # [in][tap][out]
            weight = unit["weight"][..., : step.out_channels].permute(2, 0, 1)
        else:
            weight = unit.conv("weight", step.out_channels)
        self.flat = step.taps == 9 and step.in_channels < 16 and step.in_mask < 0
        layout = Channels(step.in_channels)
        self._keep("weight", facts.matrix(weight, None if self.flat else layout), None)
        self._keep("bias", pad(unit["bias"][: step.out_channels], 0))
        self.normalise = normalise
        if normalise:
            self._keep("norm", torch.stack([layout.spread(unit[name], 0) for name in ("scale", "shift")]))
        starts = {first: i for i, (first, _) in enumerate(facts.masks)}
        self.in_list, self.out_list = starts.get(step.in_mask, -1), starts.get(step.out_mask, -1)

    def forward(self, run: Run) -> None:
        step = self.step
        source, to = run.maps[step.src], run.into(step.dst, self.pool)
        whole = step.out_offset == 0 and step.out_channels == run.layouts[step.dst].total
        accumulate, relu, pool = (_is(step, name) for name in ("accumulate", "relu", "pool"))
        inputs, input_counts = self._listed(run, self.in_list, step.in_mask, step.in_channels)
        chosen, chosen_counts = self._listed(run, self.out_list, step.out_mask, step.out_channels)
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
            *run.sizes[step.src],
            step.stride,
            step.taps,
            step.in_channels,
            step.out_channels,
            run.layouts[step.dst].places if whole else step.out_channels,
            (step.relu_channels or step.out_channels) if relu else 0,
            accumulate,
            (accumulate and relu) or pool,
        )

    @staticmethod
    def _listed(run: Run, index: int, first: int, count: int) -> tuple[Tensor | None, Tensor | None]:
        if index < 0:
            return None, None
        assert run.lists is not None and run.list_counts is not None
        return run.lists[:, first : first + count], run.list_counts[:, index]


class Subsample(Step):
    def forward(self, run: Run) -> None:
        step = self.step
        data = run.maps[step.src].data[:, :, : step.in_channels]
        places = run.layouts[step.dst].places
        y = resample.subsample(data, *run.sizes[step.src], step.stride, step.out_offset, places)
        run.put(step.dst, y, self.pool)


class Pool(Step):
    def forward(self, run: Run) -> None:
        step = self.step
        window = (step.taps // step.columns, step.columns)
        average = _OPS[step.op] == "avg_pool"
        source = run.maps[step.src].data
        run.put(step.dst, resample.pool(source, *run.sizes[step.src], window, step.stride, average), self.pool)


class PoolSums(Step):
    def forward(self, run: Run) -> None:
        m = run.maps[self.step.src]
        m.sums = resample.unit_sums(m.data)


class Add(Step):
    def forward(self, run: Run) -> None:
        step = self.step
        source, to = run.maps[step.src].data, run.maps[step.dst].data
        part = source[:, :, step.src_offset : step.src_offset + step.in_channels]
        to[:, :, step.out_offset : step.out_offset + step.in_channels] += part


class Gate(Step):
    def __init__(self, step: Instruction, facts: Facts) -> None:
        super().__init__(step, facts)
        self.recurrent = _KINDS[step.gate] == "recurrent"
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
        first = not _is(step, "accumulate")
        recurrent_gate(sums, self.weight, self.bias, *shared, run.state, *decision, run.pixels(step.src), first)


_STEPS: dict[str, type[Step]] = {
    "load": Load,
    "store": Store,
    "stem": Stem,
    "dense_block": DenseBlock,
    "transition": Transition,
    "head": Head,
    "conv2d": Conv2d,
    "subsample": Subsample,
    "max_pool": Pool,
    "avg_pool": Pool,
    "pool_sums": PoolSums,
    "add": Add,
    "gate": Gate,
    "linear": Linear,
}


def make(step: Instruction, facts: Facts) -> Step:
    """The module of an instruction.

    Raises:
        UserError: it is of a network that only the CPU serves.
    """
    general = _OPS[step.op] == "conv2d" and step.columns > 0
    if _OPS[step.op] not in _STEPS or general or step.pad_rows or step.pad_columns:
        raise UserError(f"the Triton kernels do not serve this {_OPS[step.op]}; expected a network that a GPU serves")
    return _STEPS[_OPS[step.op]](step, facts)
