"""Which layer ran for which sample, when, on which thread, and what it cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dsn_models import UserError

from ..graph import Conv2d, DenseBlock, Graph, Node
from ..lower import steps
from .flops import graph_layers, planned_parts
from .networks import run
from .ranges import named_range

_PLAN, _TIMED = 5, 10  # arguments of the operator
WHOLE_BATCH = -1  # in place of a sample: what torch runs beside the plans


class Span(NamedTuple):
    """A thread's part in a step of a sample.

    Attributes:
        sample: its number, or :data:`WHOLE_BATCH`.
        step: index into ``Timeline.steps``.
        thread: that ran it.
        start, end: nanoseconds since the call began.
        macs: done meanwhile.
    """

    sample: int
    step: int
    thread: int
    start: int
    end: int
    macs: int


@dataclass(frozen=True)
class Timeline:
    """One call of a network.

    Attributes:
        steps: names of the steps, as ``measure.flops`` has them, in the plan's order; those without MACs too.
        branches: of each step, "" for none.
        gates: of each step, the index of its gate within the branch, -1 if it always runs.
        kinds: of each step, what it does and on which map; steps of one kind cost the same but for what is skipped.
        ran: fraction of each step that ran, float64 [B, steps].
        ms: milliseconds of each step, summed over threads, float64 [B, steps]; of a step of the whole batch, the
            sample's share. A shut layer takes next to nothing; its gate is asked by the layer, or block, before it.
        macs: counted meanwhile by the kernels, int64 [B, steps]; 0 of steps that torch runs.
        spans: what the sums are of, in the order of their beginning.
        total_ms: of the call.
        threads: that torch was given.
    """

    steps: list[str]
    branches: list[str]
    gates: list[int]
    kinds: list[str]
    ran: Tensor
    ms: Tensor
    macs: Tensor
    spans: list[Span]
    total_ms: float
    threads: int


class _Call(NamedTuple):
    """An operator that ran: of a plan, its words and spans."""

    name: str
    start: int
    end: int
    words: Tensor | None = None
    spans: Tensor | None = None


class _Recorder(TorchDispatchMode):
    """Runs each plan timed and takes the time of everything else."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
        name = func.overloadpacket.__name__
        with named_range(name):
            start = time.monotonic_ns()
            if func is torch.ops.dsn.run_plan.default:
                out = func(*args[:_TIMED], True)
                self.calls.append(_Call("", start, time.monotonic_ns(), args[_PLAN], out[-1]))
                return out
            out = func(*args, **(kwargs or {}))
            if not func.is_view:
                self.calls.append(_Call(name, start, time.monotonic_ns()))
            return out


def timeline(fast: Any, images: Tensor, gates: Mapping[str, Tensor] | None = None, *, runs: int = 5) -> Timeline:
    """Runs ``fast`` on a batch and tells what ran when.

    The kernels read a clock as each step begins and ends, some tens of nanoseconds a step; outside of this call they
    read none. Operators that torch runs beside a plan, such as an ImageNet stem, are steps of the whole batch.

    Args:
        fast: made by ``dsn_kernels.accelerate``, on the CPU.
        images: float32 [B, C, H, W].
        gates: to force, uint8 [B, L] by their name in ``last_gates``; as the network decides if not given.
        runs: calls, after one that is not counted. ``ms`` are medians over them, the spans those of the call of median
            length.

    Raises:
        UserError: the batch is empty, ``runs`` is not positive, or ``fast`` has no plan that runs on the CPU.
    """
    if len(images) == 0:
        raise UserError("the batch is empty; expected at least one image to time")
    if runs < 1:
        raise UserError(f"runs is {runs}; expected at least 1")
    if not hasattr(fast, "parts") or fast.target.backend != "cpu":
        raise UserError(
            f"a timeline is of a network that runs as a plan on the CPU; {type(fast).__name__} does not: give what "
            "dsn_kernels.accelerate makes of a whole model of dsn_models"
        )
    with torch.inference_mode():
        run(fast, images, gates)
        found = sorted((_once(fast, images, gates) for _ in range(runs)), key=lambda one: one.total_ms)
    return replace(found[runs // 2], ms=torch.stack([one.ms for one in found]).median(0).values)


def _once(fast: Any, images: Tensor, gates: Mapping[str, Tensor] | None) -> Timeline:
    recorder = _Recorder()
    start = time.monotonic_ns()
    with recorder:
        run(fast, images, gates)
    length = time.monotonic_ns() - start
    taken = fast.last_gates
    joined = torch.cat(list(taken.values()), 1) if taken else torch.empty(len(images), 0, dtype=torch.uint8)
    return _Builder(fast, joined, start).build(recorder.calls, length)


class _Builder:
    def __init__(self, fast: Any, gates: Tensor, start: int) -> None:
        self.gates, self.layers, self.start = gates, fast.layers, start
        self.parts = {module.runner.own.words.data_ptr(): (part, module.graph) for part, module in planned_parts(fast)}
        self.names: list[tuple[str, str, int, str]] = []
        self.columns: list[tuple[Tensor, Tensor, Tensor]] = []  # ran, ms, macs
        self.spans: list[Span] = []
        self.seen: Counter[str] = Counter()

    def build(self, calls: Sequence[_Call], length: int) -> Timeline:
        for call in calls:
            if call.words is not None and call.spans is not None:
                self._add_plan(*self.parts[call.words.data_ptr()], call.spans)
            else:
                self._add_operator(call)
        ran, ms, macs = (torch.stack(column, 1) for column in zip(*self.columns, strict=True))
        names, branches, gates, kinds = (list(column) for column in zip(*self.names, strict=True))
        self.spans.sort(key=lambda span: span.start)
        total_ms, threads = length / 1e6, torch.get_num_threads()
        return Timeline(names, branches, gates, kinds, ran, ms, macs, self.spans, total_ms, threads)

    def _add_operator(self, call: _Call) -> None:
        batch = len(self.gates)
        name = f"torch.{call.name}.{self.seen[call.name]}"
        self.seen[call.name] += 1
        self.spans.append(Span(WHOLE_BATCH, len(self.names), 0, call.start - self.start, call.end - self.start, 0))
        share = torch.full((batch,), (call.end - call.start) / 1e6 / batch, dtype=torch.float64)
        kind = f"torch.{call.name}"
        self._add((name, "", -1, kind), None, share, torch.zeros(batch, dtype=torch.int64))

    def _add(self, names: tuple[str, str, int, str], ran: Tensor | None, ms: Tensor, macs: Tensor) -> None:
        self.names.append(names)
        self.columns.append((torch.ones_like(ms) if ran is None else ran, ms, macs))

    def _add_plan(self, part: str, graph: Graph, spans: Tensor) -> None:
        """Spans int64 [B, threads, steps, 3] of a plan."""
        batch = len(self.gates)
        # A thread that only waited while others worked had no part in a step.
        busy = (spans[..., 0] > 0) & ((spans[..., 2] > 0) | ~(spans[..., 2] > 0).any(1, keepdim=True))
        long = torch.where(busy, spans[..., 1] - spans[..., 0], 0).sum(1).double() / 1e6  # [B, steps]
        done = spans[..., 2].sum(1)
        named = {}
        for work, count in graph_layers(part, graph, self.gates[:, : graph.gates].expand(batch, -1), self.layers):
            named[work.index, work.layer] = count
        first = len(self.names)
        for i, (index, layer) in enumerate(steps(graph)):
            ms, macs, node = long[:, i], done[:, i], graph.nodes[index]
            layers = len(node.layers) if layer < 0 and isinstance(node, DenseBlock) else 0
            if layers:  # a block: what is not its layers', its gates
                inner = slice(i + 1, i + 1 + layers)
                ms, macs = (ms - long[:, inner].sum(1)).clamp_min(0), macs - done[:, inner].sum(1)
                of = named[index, 0]
                key = of.name.rpartition("layer.")[0] + "block"
                kind = f"gates of a dense block, {_map(graph, node)}"
                self._add((f"{key}.{self.seen[key]}", of.branch, -1, kind), None, ms, macs)
                self.seen[key] += 1
            else:
                of = named[index, layer]
                self._add((of.name, of.branch, of.gate, _kind(graph, node)), of.ran.expand(batch), ms, macs)
        for sample, thread, step in busy.nonzero().tolist():
            begin, end, macs = spans[sample, thread, step].tolist()
            self.spans.append(Span(sample, first + step, thread, begin - self.start, end - self.start, macs))


def _map(graph: Graph, node: Node) -> str:
    _, height, width = graph.maps[node.src if node.dst < 0 else node.dst]
    return f"{height} x {width}"


def _kind(graph: Graph, node: Node) -> str:
    if isinstance(node, DenseBlock):
        return f"dense layer, {_map(graph, node)}"
    if not isinstance(node, Conv2d):
        return f"{node.op}, {_map(graph, node)}"
    window = node.window
    stride = f" stride {window.stride}" if window.stride > 1 else ""
    channels = f"{node.in_channels} to {node.out_channels}"
    return f"conv2d {window.rows} x {window.columns}{stride}, {channels}, {_map(graph, node)}"
