"""A whole network in one operator: each worker walks one sample through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _C
from .dense_block import dense_layer_macs
from .head import head_macs
from .inference import refuse_gradients
from .preact_conv2d import preact_conv2d_macs

# One step of a plan: a frozen dataclass with the fields of csrc/plan/instructions.def, in its order.
if TYPE_CHECKING:
    Instruction = Any
else:
    Instruction = make_dataclass(
        "Instruction",
        [(name, int, field(default=value)) for name, value in _C.INSTRUCTION_FIELDS],
        namespace={"__module__": __name__},
        frozen=True,
    )


class Work(NamedTuple):
    """MACs of an instruction, or of one layer of a dense block, for a batch of gates.

    Attributes:
        op: the instruction's name; ``"layer"`` of a dense block's layer, ``"gate"`` of what decides on it.
        index: of the instruction in the plan.
        gate: the gate that decides whether it runs, the first of a convolution's filters; -1 if it always runs.
        ran: fraction of it that ran: 0 or 1, of a convolution whose filters are chosen anything between. [B].
        macs: executed, int64 [B].
        layer: of a dense block, -1 for its gates and for every other instruction.
        inputs, filters: of a convolution: channels that it reads and filters that are on, int64 [B].
    """

    op: str
    index: int  # type: ignore[assignment]  # hides tuple.index
    gate: int
    ran: Tensor
    macs: Tensor
    layer: int = -1
    inputs: Tensor | None = None
    filters: Tensor | None = None


@dataclass(eq=False)
class Plan:
    """A network as the kernels run it: buffers (channels, height, width) and the instructions that fill them.

    ``regions`` (kind of ``_C.REGIONS``, begin, end) say which instructions belong together, in order.
    """

    buffers: list[tuple[int, int, int]] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    regions: list[tuple[int, int, int]] = field(default_factory=list)

    def buffer(self, channels: int, height: int, width: int) -> int:
        """Adds a buffer; returns its number."""
        self.buffers.append((channels, height, width))
        return len(self.buffers) - 1

    def add(self, op: str, **fields: int) -> None:
        self.code.append(Instruction(op=_C.OPS[op], **fields))

    @contextmanager
    def region(self, kind: str | None, front: int = 0) -> Iterator[None]:
        """Notes that what is added meanwhile belongs together: ``kind`` of ``_C.REGIONS``, None for nothing.

        ``front``: so many instructions before belong to it too.
        """
        begin = len(self.code) - front
        yield
        if kind is not None:
            self.regions.append((_C.REGIONS[kind], begin, len(self.code)))

    def words(self) -> Tensor:
        """What :func:`network` takes as ``plan``: int64, the format of csrc/plan/plan.h."""
        records = [*self.buffers, *self.regions, *(vars(i).values() for i in self.code)]
        counts = [_C.PLAN_FORMAT, len(self.buffers), len(self.regions)]
        return torch.tensor([*counts, *(n for record in records for n in record)])

    def steps(self) -> Iterator[tuple[int, int]]:
        """What a timed run tells apart: (instruction, -1), and for a dense block then (instruction, layer)."""
        for index, step in enumerate(self.code):
            for layer in range(-1, step.layers if step.op == _C.OPS["dense_block"] else 0):
                yield index, layer

    @property
    def gates(self) -> int:
        """Gated layers of all blocks, gated units and filters."""
        ends = [i.first_gate + i.layers for i in self._steps("dense_block")]
        ends += [i.first_gate + 1 for i in self._steps("gate")]
        for step in self._steps("conv2d"):
            ends += [step.only_if + 1, step.out_mask >= 0 and step.out_mask + step.out_channels]
        for step in self._steps("max_pool") + self._steps("avg_pool") + self._steps("load"):
            ends.append(step.out_mask >= 0 and step.out_mask + step.in_channels)
        return max([0, *ends])

    @property
    def logits(self) -> int:
        """Outputs of all heads."""
        heads = [i for op in ("head", "path_head", "linear") for i in self._steps(op)]
        return max([0, *(i.out_offset + i.out_channels for i in heads)])

    def macs(self, gates: Tensor) -> Tensor:
        """MACs the kernels execute for gates [B, L] of 0 and 1: int64 [B].

        Counted: stems, gates, layers that run over channels that hold data, transitions after pooling, convolutions
        that run (chosen filters times input channels that hold data), heads.
        """
        total = gates.new_zeros(gates.shape[0], dtype=torch.int64)
        return total + sum(work.macs for work in self.trace(gates))

    def trace(self, gates: Tensor) -> Iterator[Work]:
        """What :meth:`macs` counts, step by step, for gates [B, L] of 0 and 1."""
        gates = gates.long()
        none, all_ = gates.new_zeros(gates.shape[0]), gates.new_ones(gates.shape[0])
        live = _Live(gates)
        names = {number: name for name, number in _C.OPS.items()}
        for index, step in enumerate(self.code):
            op = names[step.op]
            if op == "dense_block":
                channels = none + step.in_channels
                for layer in range(step.layers):
                    gate = step.first_gate + layer if step.gate != _C.GATES["none"] else -1
                    taken = gates[:, gate] if gate >= 0 else all_
                    if gate >= 0:
                        yield Work("gate", index, -1, all_, none + step.in_channels + layer * self._added(step))
                    macs = dense_layer_macs(
                        self._pixels(step.dst), channels, step.out_channels, step.bottleneck, step.merge
                    )
                    yield Work("layer", index, gate, taken, taken * macs, layer)
                    channels = channels + taken * self._added(step)
                live.append_layers(step, self._added(step))
            elif op == "conv2d":
                filters = live.chosen(step.out_mask, step.out_channels)
                inputs = live.count(step.src) if step.flags & _C.FLAGS["live"] else none + step.in_channels
                runs, on = gates[:, step.only_if] if step.only_if >= 0 else all_, filters.sum(1)
                macs = runs * self._pixels(step.dst) * step.taps * on * inputs
                ran = runs * filters.double().mean(1)
                yield Work(op, index, max(step.only_if, step.out_mask), ran, macs, inputs=inputs, filters=on)
                if not step.flags & _C.FLAGS["accumulate"]:
                    live.write(step, filters)
            else:
                yield Work(op, index, -1, all_, none + self._step_macs(op, step, live))
                if op in ("max_pool", "avg_pool"):
                    live.write(step, live.of(step.src) * live.chosen(step.out_mask, step.in_channels))
                elif op == "load":
                    live.write(step, live.chosen(step.out_mask, step.in_channels))
                elif step.dst >= 0 and op != "add":
                    live.write(step, live.chosen(-1, step.out_channels), at=0)

    def _step_macs(self, op: str, step: Instruction, live: _Live) -> int | Tensor:
        """MACs of an instruction that always runs, where ``live`` channels of the buffers hold data."""
        if op == "stem":
            return self._pixels(step.dst) * 9 * step.in_channels * step.out_channels
        if op == "transition":
            inputs = live.count(step.src) + (live.count(step.guide) if step.guide >= 0 else 0)
            return preact_conv2d_macs(self._pixels(step.dst), inputs, step.out_channels)
        if op == "head":
            return head_macs(live.count(step.src), step.out_channels)
        if op == "path_head":  # scaled features, then the classifier; the path's columns are sums
            return step.in_channels * (1 + step.out_channels)
        if op == "gate":
            return gate_macs(step.in_channels, step.gate == _C.GATES["recurrent"])
        return step.in_channels * step.out_channels if op == "linear" else 0

    def resized(self, height: int, width: int) -> Plan:
        """The same plan for images of another size; it may have no linear layers on whole maps."""
        sizes: dict[int, tuple[int, int]] = {}
        for step in self.code:
            if step.src < 0 and step.dst not in sizes:
                sizes[step.dst] = (height, width)
            elif step.src >= 0 and step.dst >= 0 and step.dst not in sizes:
                sizes[step.dst] = self._map_size(step, sizes[step.src])
        return Plan([(c, *sizes[i]) for i, (c, _, _) in enumerate(self.buffers)], self.code, self.regions)

    @staticmethod
    def _map_size(step: Instruction, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that a step leaves of a map."""
        height, width = size
        if step.op == _C.OPS["transition"]:
            return height // 2, width // 2
        if not step.columns:
            stride = max(step.stride, 1)
            return -(-height // stride), -(-width // stride)
        rows = step.taps // step.columns
        return (
            (height + 2 * step.pad_rows - rows) // step.stride + 1,
            (width + 2 * step.pad_columns - step.columns) // step.stride + 1,
        )

    def _steps(self, op: str) -> list[Instruction]:
        return [i for i in self.code if i.op == _C.OPS[op]]

    def _pixels(self, buffer: int) -> int:
        return self.buffers[buffer][1] * self.buffers[buffer][2]

    @staticmethod
    def _added(block: Instruction) -> int:
        """Channels by which a layer widens its block."""
        return block.out_channels if block.merge == _C.MERGES["concat"] else 0


class _Live:
    """Which channels of each buffer hold data, for gates int64 [B, L]: int64 [B, C] of 0 and 1."""

    def __init__(self, gates: Tensor) -> None:
        self._gates, self._live = gates, dict[int, Tensor]()

    def of(self, buffer: int) -> Tensor:
        return self._live[buffer]

    def count(self, buffer: int) -> Tensor:
        return self._live[buffer].sum(1)

    def chosen(self, mask: int, channels: int) -> Tensor:
        """The columns of a mask that begins at gate ``mask``; all ones without one."""
        if mask < 0:
            return self._gates.new_ones(()).expand(len(self._gates), channels)
        return self._gates[:, mask : mask + channels]

    def write(self, step: Instruction, channels: Tensor, at: int | None = None) -> None:
        """Puts ``channels`` behind the first ``at`` of dst, ``step.out_offset`` if not given."""
        before = step.out_offset if at is None else at
        self._live[step.dst] = torch.cat([self._live[step.dst][:, :before], channels], 1) if before else channels

    def append_layers(self, block: Instruction, added: int) -> None:
        taken = self.chosen(block.first_gate if block.gate != _C.GATES["none"] else -1, block.layers)
        before = self._live[block.dst][:, : block.in_channels]
        self._live[block.dst] = torch.cat([before, taken.repeat_interleave(added, 1)], 1)


def gate_macs(in_channels: int, recurrent: bool) -> int:
    """A linear map of the pooled input; a recurrent gate embeds in 10, goes through an LSTM(10, 10) and projects."""
    return 10 * in_channels + 8 * 100 + 10 if recurrent else in_channels


def network(
    image: Tensor,
    weights: Tensor,
    thresholds: Tensor,
    forced_gates: Tensor | None,
    plan: Tensor,
    gates: int,
    logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs ``plan`` for each sample; what stands between its instructions never leaves a worker's memory.

    The working memory is one copy of the plan's buffers per thread, whatever the batch.

    Args:
        image: float32 [B, C, H, W].
        weights: float32, packed by :mod:`dsn_kernels.nn`.
        thresholds: float32 [L] in [0, 1], L the gated layers of all blocks.
        forced_gates: uint8 [B, L] of 0 and 1, or None.
        plan: int64, ``Plan.words()``.
        gates: ``Plan.gates``, L.
        logits: ``Plan.logits``.

    Returns:
        logits float32 [B, logits]; gates taken uint8 [B, L]; scores float32 [B, L]; MACs executed
        int64 [B].

    Raises:
        RuntimeError: an argument has the wrong device, dtype, shape or values, or the plan does not fit; the message
            names it.
    """
    refuse_gradients(image, weights, thresholds)
    return torch.ops.dsn.network(image, weights, thresholds, forced_gates, plan, gates, logits)


@torch.library.register_fake("dsn::network")
def _(image, weights, thresholds, forced_gates, plan, gates, logits):
    batch = image.shape[0]
    return (
        image.new_empty(batch, logits),
        image.new_empty(batch, gates, dtype=torch.uint8),
        image.new_empty(batch, gates),
        image.new_empty(batch, dtype=torch.int64),
    )


def timed_network(
    image: Tensor,
    weights: Tensor,
    thresholds: Tensor,
    forced_gates: Tensor | None,
    plan: Tensor,
    gates: int,
    logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:func:`network`, which also notes when each step ran; the steps are those of ``Plan.steps()``.

    Returns:
        What :func:`network` returns, and spans int64 [B, threads, steps, 3]: nanoseconds of the system's steady clock
        (``time.monotonic_ns``) at which a thread began and ended a step of a sample, and the MACs it did in between;
        zeros where it had no part in it. A dense block's layers lie within its own span.

    Raises:
        RuntimeError: as :func:`network`.
    """
    refuse_gradients(image, weights, thresholds)
    return torch.ops.dsn.timed_network(image, weights, thresholds, forced_gates, plan, gates, logits)


@torch.library.register_fake("dsn::timed_network")
def _(image, weights, thresholds, forced_gates, plan, gates, logits):
    batch = image.shape[0]
    threads, steps = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    return (
        image.new_empty(batch, logits),
        image.new_empty(batch, gates, dtype=torch.uint8),
        image.new_empty(batch, gates),
        image.new_empty(batch, dtype=torch.int64),
        image.new_empty(batch, threads, steps, 3, dtype=torch.int64),
    )


@register_flop_formula([torch.ops.dsn.network, torch.ops.dsn.timed_network], get_raw=True)
def _(*args, out_val, **kwargs) -> int:
    return 2 * int(out_val[3].sum())
