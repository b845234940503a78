"""A plan's packed weights in the GPU kernels' layout (csrc/cuda/layout.h), made from those of the CPU kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _C
from ..ops.network import Instruction, Plan

_GROUP: int = _C.cuda.GROUP
ELEMENTS: dict[torch.dtype, int] = {
    torch.float32: _C.cuda.ELEMENTS["float32"],
    torch.float16: _C.cuda.ELEMENTS["float16"],
    torch.bfloat16: _C.cuda.ELEMENTS["bfloat16"],
}

# (name, offset, shape) in floats, size; (name, offset, shape, wide) in bytes, size
_CpuLayout = tuple[list[tuple[str, int, list[int]]], int]
_GpuLayout = tuple[list[tuple[str, int, list[int], bool]], int]


@dataclasses.dataclass(frozen=True)
class _Channels:
    """Channels of a state: the first ones, then slices of equal width; both are padded to whole groups."""

    first: int
    slices: int = 0
    width: int = 0

    @property
    def total(self) -> int:
        return self.first + self.slices * self.width

    def spread(self, x: Tensor, dim: int) -> Tensor:
        """The channels of ``x`` along ``dim`` at their padded places, zeros between."""
        parts = x.split([self.first, *[self.width] * self.slices], dim)
        return torch.cat([_pad(part, dim, _GROUP) for part in parts], dim)

    def args(self) -> tuple[int, int, int]:
        return self.first, self.slices, self.width


def _pad(x: Tensor, dim: int, multiple: int) -> Tensor:
    missing = -x.shape[dim] % multiple
    if not missing:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_zeros(shape)], dim)


def _columns(x: Tensor, dim: int) -> Tensor:
    return _pad(x, dim, _C.cuda.COLUMNS)


def _conv(weight: Tensor, spread: Callable[[Tensor, int], Tensor]) -> Tensor:
    """[O, I, taps] to [taps, groups, columns, 4]."""
    padded = _columns(spread(weight, 1), 0)  # [columns, places, taps]
    return padded.unflatten(1, (-1, _GROUP)).permute(3, 1, 0, 2)


def _norm(scale: Tensor, shift: Tensor) -> Tensor:
    """Both [places], to [groups, 2, 4]."""
    return torch.stack([scale, shift]).unflatten(1, (-1, _GROUP)).transpose(0, 1)


class Unit:
    """One packed unit of the CPU kernels, by field, without its padding."""

    def __init__(self, weights: Tensor, offset: int, layout: _CpuLayout) -> None:
        fields, self.size = layout
        self._fields = {
            name: weights[offset + at : offset + at + math.prod(shape)].reshape(shape) for name, at, shape in fields
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._fields[name]

    def conv(self, name: str, out_channels: int) -> Tensor:
        """[blocks, I, taps, rows] to [O, I, taps]."""
        return self[name].permute(0, 3, 1, 2).flatten(0, 1)[:out_channels]


class _Buffer:
    """GPU units one after the other, in bytes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.size = 0
        self._chunks: list[Tensor] = []

    def add(self, layout: _GpuLayout, **values: Tensor) -> None:
        fields, size = layout
        chunk = torch.zeros(size, dtype=torch.uint8)
        for name, offset, shape, wide in fields:
            if math.prod(shape) == 0:
                continue
            value = values[name].to(torch.float32 if wide else self.dtype).contiguous()
            if list(value.shape) != shape:
                raise ValueError(f"packing {name}: got shape {list(value.shape)}, the layout says {shape}")
            data = value.flatten().view(torch.uint8)
            chunk[offset : offset + data.numel()] = data
        self._chunks.append(chunk)
        self.size += size

    def tensor(self) -> Tensor:
        return torch.cat([*self._chunks, torch.zeros(16, dtype=torch.uint8)])


def pack_for_cuda(plan: Plan, weights: Tensor, dtype: torch.dtype) -> tuple[Plan, Tensor]:
    """The same network for the GPU kernels.

    Args:
        plan: of the CPU kernels.
        weights: float32, packed for it.
        dtype: of weights and activations: float32, float16 or bfloat16; gates, heads, biases and constants stay
            float32.

    Returns:
        the plan with offsets in bytes, and the weights, uint8.
    """
    return _Repacker(plan, weights, dtype).run()


class _Repacker:
    def __init__(self, plan: Plan, weights: Tensor, dtype: torch.dtype) -> None:
        self.plan, self.weights, self.out = plan, weights.detach().cpu().double(), _Buffer(dtype)
        self.element = ELEMENTS[dtype]
        self.states: dict[int, _Channels] = {}
        self.recurrences: dict[int, int] = {}  # places of the CPU's and of these
        self.live: set[int] = set()  # buffers of which single channels may hold no data

    def run(self) -> tuple[Plan, Tensor]:
        names = {code: name for name, code in _C.OPS.items()}
        code = []
        for step in self.plan.code:
            shared = self._recurrence(step) if names[step.op] == "gate" else 0
            offset = self.out.size
            made = getattr(self, "_" + names[step.op])(step) or step
            flags = made.flags & ~_C.FLAGS["winograd"]  # a way of the CPU's
            code.append(dataclasses.replace(made, weights=offset, shared=shared, flags=flags))
        return Plan(list(self.plan.buffers), code, self.plan.regions), self.out.tensor()

    def _unit(self, step: Instruction, layout: _CpuLayout, offset: int = 0) -> Unit:
        return Unit(self.weights, step.weights + offset, layout)

    def _load(self, step: Instruction) -> None:
        self.states[step.dst] = _Channels(step.in_channels)
        self._written(step, step.out_mask >= 0)

    def _store(self, step: Instruction) -> None:
        pass

    def _stem(self, step: Instruction) -> None:
        unit = self._unit(step, _C.stem_layout(step.in_channels, step.out_channels))
        weight = unit.conv("weight", step.out_channels).flatten(1)[:, :, None]  # channels and taps are one depth
        self.out.add(
            _C.cuda.stem_layout(step.in_channels, step.out_channels, self.element),
            weight=_conv(weight, lambda x, dim: _pad(x, dim, _C.cuda.STEP)),
        )
        self.states[step.dst] = _Channels(step.out_channels)

    def _dense_block(self, step: Instruction) -> None:
        add = step.merge == _C.MERGES["add"]
        width = 0 if add else step.out_channels
        units, offset = [], 0
        for layer in range(step.layers):
            layout = _C.dense_layer_layout(
                step.in_channels + layer * width, step.out_channels, step.bottleneck, layer, step.merge
            )
            units.append(self._unit(step, layout, offset))
            offset += units[-1].size
        whole = _Channels(step.in_channels, 0 if add else step.layers, width)
        self.states[step.dst] = whole
        gates = torch.zeros(step.layers, whole.total, dtype=torch.float64)
        for row, unit in zip(gates, units, strict=True):
            row[: unit["gate"].numel()] = unit["gate"]
        self.out.add(
            _C.cuda.gates_layout(*whole.args(), step.layers),
            gate=whole.spread(gates, 1),
            gate_bias=torch.cat([unit["gate_bias"] for unit in units]),
        )
        for layer, unit in enumerate(units):
            before = _Channels(step.in_channels, 0 if add else layer, width)
            self.out.add(
                _C.cuda.layer_layout(*before.args(), step.out_channels, step.bottleneck, step.merge, self.element),
                **self._layer_fields(step, unit, before, add),
            )

    def _layer_fields(self, step: Instruction, unit: Unit, before: _Channels, add: bool) -> dict[str, Tensor]:
        def spread_columns(x: Tensor, dim: int) -> Tensor:  # what a convolution before has written
            return _columns(x, dim)

        out_channels = step.bottleneck if add else step.out_channels
        conv = unit.conv("conv", out_channels)
        fields = {"norm": _norm(before.spread(unit["scale"], 0), before.spread(unit["shift"], 0))}
        if not step.bottleneck:
            constants = unit["constants"][:, :, : step.out_channels]
            return fields | {"conv": _conv(conv, before.spread), "constants": _columns(constants, 2)}
        fields |= {
            "reduce": _conv(unit.conv("reduce", step.bottleneck), before.spread),
            "reduce_bias": _columns(unit["reduce_bias"][: step.bottleneck], 0),
            "constants": _columns(unit["constants"][:, : step.bottleneck], 1),
            "conv": _conv(conv, spread_columns),
        }
        if add:
            fields["conv_bias"] = _columns(unit["conv_bias"][: step.bottleneck], 0)
            fields["expand"] = _conv(unit.conv("expand", step.in_channels), spread_columns)
        return fields

    def _transition(self, step: Instruction) -> Instruction | None:
        if step.src in self.live:
            return self._pooling_conv2d(step)
        source = self.states[step.src]
        guide = self.states[step.guide] if step.guide >= 0 else _Channels(0)
        sizes = [source.total, guide.total]

        def spread(x: Tensor, dim: int) -> Tensor:
            parts = x.split(sizes, dim)
            return torch.cat([c.spread(p, dim) for c, p in zip((source, guide), parts, strict=True)], dim)

        unit = self._unit(step, _C.transition_layout(sum(sizes), step.out_channels, source.slices + guide.slices))
        self.out.add(
            _C.cuda.transition_layout(*source.args(), *guide.args(), step.out_channels, self.element),
            norm=_norm(spread(unit["scale"], 0), spread(unit["shift"], 0)),
            weight=_conv(unit.conv("weight", step.out_channels), spread),
            constants=_columns(unit["constants"][:, : step.out_channels], 1),
        )
        self.states[step.dst] = _Channels(step.out_channels)
        return None

    def _pooling_conv2d(self, step: Instruction) -> Instruction:
        """A transition whose input channels are chosen one by one is a convolution of means."""
        unit = self._unit(step, _C.transition_layout(step.in_channels, step.out_channels, 0))
        conv = dataclasses.replace(
            step,
            op=_C.OPS["conv2d"],
            taps=1,
            columns=1,
            stride=2,
            flags=_C.FLAGS["normalise"] | _C.FLAGS["live"] | _C.FLAGS["means"],
        )
        bias = torch.zeros(step.out_channels, dtype=torch.float64)
        self._add_conv2d(conv, unit.conv("weight", step.out_channels), bias, (unit["scale"], unit["shift"]))
        return conv

    def _head(self, step: Instruction) -> None:
        source, live = self.states[step.src], step.src in self.live
        unit = self._unit(step, _C.head_layout(source.total, step.out_channels, source.slices))
        self.out.add(
            _C.cuda.head_layout(*source.args(), step.out_channels, live),
            norm=_norm(source.spread(unit["scale"], 0), source.spread(unit["shift"], 0)),
            weight=source.spread(unit["weight"].T, 1),
            bias=unit["bias"],
            constants=unit["shift"].relu()[:, None] * unit["weight"] if live else unit["constants"],
        )

    def _path_head(self, step: Instruction) -> None:
        source = self.states[step.src]
        unit = self._unit(step, _C.path_head_layout(source.total, step.out_channels, step.layers))
        self.out.add(
            _C.cuda.path_head_layout(*source.args(), step.out_channels, step.layers),
            norm=_norm(source.spread(unit["scale"], 0), source.spread(unit["shift"], 0)),
            weight=source.spread(unit["weight"].T, 1),
            bias=unit["bias"],
            path=source.spread(unit["path"], 2),
            path_bias=source.spread(unit["path_bias"], 1),
        )

    def _fills(self, step: Instruction) -> None:
        """The step's buffer is one map, whatever part of it the step writes."""
        self.states[step.dst] = _Channels(self.plan.buffers[step.dst][0])

    def _written(self, step: Instruction, live: bool) -> None:
        """Notes what is known of the step's buffer: ``live`` of the channels that it writes."""
        if live:
            self.live.add(step.dst)
        elif step.out_offset == 0:
            self.live.discard(step.dst)

    def _pool(self, step: Instruction) -> None:
        self._fills(step)
        self._written(step, step.out_mask >= 0 or step.src in self.live)

    def _conv2d(self, step: Instruction) -> None:
        normalises = bool(step.flags & _C.FLAGS["normalise"])
        layout = _C.conv2d_layout(
            step.in_channels,
            step.out_channels,
            step.taps,
            normalises,
            step.out_mask >= 0,
            bool(step.flags & _C.FLAGS["winograd"]),
        )
        unit = self._unit(step, layout)
        if step.out_mask >= 0:  # [in][tap][out]
            weight = unit["weight"].permute(2, 0, 1)[: step.out_channels]
        else:
            weight = unit.conv("weight", step.out_channels)
        norm = (unit["scale"], unit["shift"]) if normalises else None
        self._add_conv2d(step, weight, unit["bias"][: step.out_channels], norm)

    def _add_conv2d(self, step: Instruction, weight: Tensor, bias: Tensor, norm: tuple[Tensor, Tensor] | None) -> None:
        """Adds the unit of a convolution, weight [O, I, taps], with scale and shift of the BN-ReLU before it."""
        front, live = step.src_offset % _GROUP, bool(step.flags & _C.FLAGS["live"])
        chosen = live or max(step.out_mask, step.in_mask) >= 0

        def spread(x: Tensor, dim: int) -> Tensor:
            shape = list(x.shape)
            shape[dim] = front
            return _pad(torch.cat([x.new_zeros(shape), x], dim), dim, _C.cuda.STEP)

        fields = {"weight": _conv(weight, spread), "bias": _columns(bias, 0)}
        if norm is not None:
            fields["norm"] = _norm(*(spread(part, 0) for part in norm))
            fields["constants"] = _columns((norm[1].relu() * weight.sum(2)).T, 1)
        if chosen:
            fields["selectable"] = _columns(weight.permute(2, 1, 0), 2)
        sizes = front, step.in_channels, step.out_channels, step.taps
        self.out.add(
            _C.cuda.conv2d_layout(*sizes, norm is not None, chosen, live and norm is not None, self.element), **fields
        )
        self._fills(step)
        if not step.flags & _C.FLAGS["accumulate"]:
            self._written(step, step.out_mask >= 0)

    def _wide(self, layout: _GpuLayout, unit: Unit) -> None:
        self.out.add(layout, **{name: unit[name] for name, *_ in layout[0]})

    def _recurrence(self, step: Instruction) -> int:
        """Where the LSTM of a recurrent gate is, packed at its first."""
        if step.gate != _C.GATES["recurrent"]:
            return 0
        if step.shared not in self.recurrences:
            self.recurrences[step.shared] = self.out.size
            self._wide(_C.cuda.recurrence_layout(), Unit(self.weights, step.shared, _C.recurrence_layout()))
        return self.recurrences[step.shared]

    def _gate(self, step: Instruction) -> None:
        sizes = step.in_channels, step.gate == _C.GATES["recurrent"]
        self._wide(_C.cuda.gate_layout(*sizes), self._unit(step, _C.gate_layout(*sizes)))

    def _linear(self, step: Instruction) -> None:
        sizes = step.in_channels, step.out_channels
        self._wide(_C.cuda.linear_layout(*sizes), self._unit(step, _C.linear_layout(*sizes)))

    def _pool_sums(self, step: Instruction) -> None:
        pass

    _tanh = _pool_sums
    _max_pool = _avg_pool = _pool
    _subsample = _add = _fills
