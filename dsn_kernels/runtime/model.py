"""Any network, accelerated from what ``torch.export`` sees of it: plans, and between them what torch computes."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import TreeSpec, tree_unflatten

from dsn_models.errors import UserError
from dsn_models.gates import zeros_and_ones
from dsn_models.tensors import hint
from dsn_models.world import check_range

from ..capture.exported import Captured, PlanSection, TorchSection
from ..graph import Graph, count_macs
from ..ops import Outputs, refuse_gradients
from .cuda_graphs import check_threshold
from .fixed import Fixed, told
from .runner import make_runner
from .target import Target

_KEPT = 8  # plans for so many sizes of images
_AS_DECIDED = 2  # among the gates that a plan is given

# The shapes of one sample of each tensor that the model takes.
Shapes = tuple[tuple[int, ...], ...]
# From such shapes to the network for them, or a UserError.
Capture = Callable[[Shapes], Captured]


class CapturedModel(Fixed):
    """Same call and same outputs as the model in ``eval()``; computes only what its gates open.

    It stands for any module of batches of tensors. What has kernels runs in plans, the rest in torch between them;
    :meth:`summary` says which. Where the module says :func:`dsn_models.functional.where_open` or
    :func:`~dsn_models.functional.choose_filters`, what a gate shuts is not computed. After each call ``last_gates``,
    ``last_scores`` and ``last_macs`` say what it did.

    Args:
        first: the network for tensors of ``shapes``, of one sample each.
        shapes: of those tensors.
        capture: captures it for others.
        structure: how the model structures its outputs.
        target: what the plans run on.
        gates: a name for all gates; without, each has that of its module.

    Args of ``forward``:
        inputs: the model's, each [B, ...], of float32 or the target's dtype. Of other shapes than the first, the
            network is captured when they come; it is kept for the eight shapes that were used last.
        forced_gates: ``{name: [B, L]}`` of 0 and 1 of any type, for each name in ``layers``, instead of the decisions.
        thresholds: one number for all gates that plans decide, or ``{name: number}``; those of the model if not given.

    Raises:
        UserError: inputs, forced gates or thresholds do not fit or lie on another device, or the model does not run on
            tensors of such shapes.

    >>> import torch, dsn_kernels
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> dsn_kernels.accelerate(model, example=torch.rand(1, 3, 8, 8))
    <network of [B, 3, 8, 8], accelerated: cpu, float32, no gates, 0.01 M MACs with all open>
    """

    thresholds: Tensor

    def __init__(
        self,
        first: Captured,
        shapes: Shapes,
        capture: Capture,
        structure: TreeSpec,
        target: Target,
        gates: str | None = None,
    ) -> None:
        super().__init__()
        self.target, self._structure, self._shapes = target, structure, shapes
        self._capture: Capture | None = capture
        self._columns = [gates or name for plan in first.plans for name in plan.emitted.gates]
        self._of: dict[str, list[int]] = {}  # the columns of each name
        for column, name in enumerate(self._columns):
            self._of.setdefault(name, []).append(column)
        self.layers: dict[str, int] = {name: len(columns) for name, columns in self._of.items()}
        limits = [limit for plan in first.plans for limit in plan.emitted.thresholds]
        self.register_buffer("thresholds", torch.tensor(limits, dtype=torch.float32), persistent=False)
        self.networks = nn.ModuleDict()
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._keep(first, shapes)
        none = torch.empty(0, len(self._columns))
        self._last = (none.byte(), none, torch.empty(0, dtype=torch.int64))
        self.eval()
        self.requires_grad_(False)

    def forward(
        self,
        *inputs: Tensor,
        forced_gates: Mapping[str, Tensor] | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> Any:
        self._check(inputs)
        check_range(self, inputs[0])
        forced = None if forced_gates is None else self._join(forced_gates, len(inputs[0]))
        limits = self.thresholds if thresholds is None else self._limits(thresholds)
        # A module's own call takes tens of microseconds where the kernels have filled the caches.
        outputs, last = self._network(inputs).forward(inputs, limits, forced)
        if not torch.compiler.is_exporting():
            self._last = last
        return outputs[0] if self._structure.is_leaf() else tree_unflatten(outputs, self._structure)

    @property
    def parts(self) -> dict[str, _Plan]:
        """What holds a graph, in the order in which it runs: the plans, for tensors of the first shapes."""
        plans = [section for section in self._first.sections if isinstance(section, _Plan)]
        return {f"plan {i}" if len(plans) > 1 else "": plan for i, plan in enumerate(plans)}

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """What each gate did in the last call, uint8 [B, L] by name: 1 = open."""
        return self._split(self._last[0])

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """The gates' scores in the last call, float32 [B, L] by name; 0 of those that torch decides."""
        return self._split(self._last[1])

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates of the last call's plans, counted by the kernels while they ran, int64 [B]."""
        return self._last[2]

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of a sample in plans with all gates open, by formula."""
        return self._macs(1)

    @property
    def kernel_share(self) -> float:
        """The part of a sample's multiply-accumulates that plans do, all gates open."""
        other = sum(section.macs for section in self._first.sections if isinstance(section, _Torch))
        total = self.dense_macs + other
        return self.dense_macs / total if total else 1.0

    def __repr__(self) -> str:
        """What it is, in a line: what it takes, its backend, type, gates and MACs."""
        takes = " and ".join(f"[B, {key.replace('x', ', ')}]" for key in next(iter(self.networks)).split(", "))
        return told(f"network of {takes}", self.target, self.layers, self._macs(1))

    def summary(self) -> str:
        """What runs in kernels, what in torch and why, and what it costs with all gates open and all shut."""
        lines = []
        for section in self._first.sections:
            if isinstance(section, _Plan):
                macs = f"{section.macs(1) / 1e6:.1f} M multiply-accumulates"
                lines.append(f"plan on {self.target.backend}: {len(section.graph.nodes)} instructions, {macs}")
            elif isinstance(section, _Torch):
                operations = len(section.reasons)
                lines.append(f"torch: {operations} operations, {section.macs / 1e6:.1f} M multiply-accumulates")
                lines += [f"  {count} x {why}" for why, count in Counter(section.reasons).most_common(3)]
        lines.append(f"{100 * self.kernel_share:.1f} % of the multiply-accumulates in kernels")
        if self._columns:
            lines.append(f"{self._macs(1) / 1e6:.1f} M with all gates open, {self._macs(0) / 1e6:.1f} M with all shut")
            lines += [f"  {name}: {count} {'gate' if count == 1 else 'gates'}" for name, count in self.layers.items()]
        return "\n".join(lines)

    def _macs(self, open: int) -> int:
        return sum(section.macs(open) for section in self._first.sections if isinstance(section, _Plan))

    @property
    def _first(self) -> _Network:
        network = next(iter(self.networks.values()))
        assert isinstance(network, _Network)
        return network

    def _network(self, inputs: Sequence[Tensor]) -> _Network:
        key = _key([tuple(x.shape[1:]) for x in inputs])
        if key not in self.networks:
            if self._capture is None:
                raise UserError(
                    f"inputs are {key}; a copy runs on those alone that were made: {', '.join(self.networks)}"
                )
            shapes = tuple(tuple(x.shape[1:]) for x in inputs)
            self._keep(self._capture(shapes), shapes)
        if len(self._recent) > 1:
            self._recent.move_to_end(key)
        return self.networks[key]  # type: ignore[return-value]

    def _keep(self, captured: Captured, shapes: Shapes) -> None:
        key = _key(shapes)
        self.networks[key] = _Network(captured, self.target).to(self.thresholds.device)
        self._recent[key] = None
        if len(self._recent) > _KEPT:
            del self.networks[self._recent.popitem(last=False)[0]]

    def _check(self, inputs: Sequence[Tensor]) -> None:
        if len(inputs) != len(self._shapes):
            raise UserError(f"{len(inputs)} inputs; the model takes {len(self._shapes)}")
        for x, shape in zip(inputs, self._shapes, strict=True):
            fits = isinstance(x, Tensor) and x.dim() == 1 + len(shape)
            if not fits or (len(shape) == 3 and x.shape[1] != shape[0]):
                given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                told = f"{_key([shape])}{hint(x, 1 + len(shape))}"
                raise UserError(f"an input is {given}; expected a batch of tensors such as {told}")
            if x.dtype not in (torch.float32, self.target.dtype):
                raise UserError(f"an input is {x.dtype}; expected {torch.float32} or {self.target.dtype}")
            if x.device != self.thresholds.device:
                raise UserError(f"an input is on {x.device}; expected {self.thresholds.device}")
            if len(x) != len(inputs[0]):
                raise UserError(f"inputs are of {len(inputs[0])} and {len(x)} samples; expected as many of each")
            refuse_gradients(x)

    def _limits(self, thresholds: float | Mapping[str, float]) -> Tensor:
        if not isinstance(thresholds, Mapping):
            return torch.full_like(self.thresholds, check_threshold(thresholds))
        if unknown := set(thresholds) - set(self.layers):
            raise UserError(f"thresholds name {sorted(unknown)}; expected some of {sorted(self.layers)}")
        own = zip(self._columns, self.thresholds.tolist(), strict=True)
        limits = [check_threshold(thresholds[name]) if name in thresholds else limit for name, limit in own]
        return torch.tensor(limits, dtype=torch.float32, device=self.thresholds.device)

    def _split(self, joined: Tensor) -> dict[str, Tensor]:
        return {name: joined[:, self._of[name]] for name in self.layers}

    def _join(self, forced_gates: Mapping[str, Tensor], batch: int) -> Tensor:
        if not isinstance(forced_gates, Mapping) or set(forced_gates) != set(self.layers):
            given = sorted(forced_gates) if isinstance(forced_gates, Mapping) else type(forced_gates).__name__
            raise UserError(f"forced_gates is {given}; expected a mapping with {sorted(self.layers)}")
        joined = torch.empty(batch, len(self._columns), dtype=torch.uint8, device=self.thresholds.device)
        for name, count in self.layers.items():
            joined[:, self._of[name]] = zeros_and_ones(name, forced_gates[name], [batch, count]).to(joined.device)
        return joined

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: not the model, of which plans for other shapes would be made."""
        return {**self.__dict__, "_capture": None}


def _key(shapes: Sequence[tuple[int, ...]]) -> str:
    """``"3x32x32"``, of each tensor."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


class _Network(nn.Module):
    """The sections of a captured network for tensors of certain shapes."""

    def __init__(self, captured: Captured, target: Target) -> None:
        super().__init__()
        self.takes, self.gives = captured.takes, captured.gives
        sections: list[nn.Module] = []
        gates = 0
        for section in captured.sections:
            if isinstance(section, PlanSection):
                sections.append(_Plan(section, target, gates))
                gates += len(section.emitted.gates)
            else:
                sections.append(_Torch(section))
        self.sections = nn.ModuleList(sections)

    def forward(
        self, inputs: Sequence[Tensor], limits: Tensor, forced: Tensor | None
    ) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]]:
        known = dict(zip(self.takes, inputs, strict=True))
        done: list[Outputs] = []
        for section in self.sections:
            if isinstance(section, _Plan):
                done.append(section.forward(known, limits, forced))
            else:
                section(known, len(inputs[0]))
        if len(done) == 1:
            return [known[name] for name in self.gives], (done[0].gates, done[0].scores, done[0].macs)
        batch = len(inputs[0])
        gates = [out.gates for out in done] or [limits.new_empty(batch, 0).byte()]
        scores = [out.scores for out in done] or [limits.new_empty(batch, 0)]
        macs = sum((out.macs for out in done), limits.new_zeros(batch, dtype=torch.int64))
        return [known[name] for name in self.gives], (torch.cat(gates, 1), torch.cat(scores, 1), macs)


class _Plan(nn.Module):
    """A plan among the sections; its gates are the network's from ``first`` on."""

    def __init__(self, section: PlanSection, target: Target, first: int) -> None:
        super().__init__()
        self.takes, self.gives, self.decided = section.takes, section.gives, section.decided
        emitted = section.emitted
        self.dtype = target.map_dtype
        self.outputs, self.first, self.gates = emitted.outputs, first, len(emitted.gates)
        self.given = [
            (first, count, name) for (first, count, _), name in zip(emitted.given, section.given, strict=True)
        ]
        self.runner = make_runner(emitted.graph, target.dtype, target.backend)
        self.always = self.graph.gates - self.gates  # layers of a lowered graph that have numbers among the gates

    @property
    def graph(self) -> Graph:
        return self.runner.graph  # type: ignore[no-any-return]

    def macs(self, open: int) -> int:
        """Of a sample with all gates open, or all shut."""
        return int(count_macs(self.graph, torch.full((1, self.graph.gates), open, dtype=torch.uint8))[0])

    def forward(self, known: dict[str, Tensor], limits: Tensor, forced: Tensor | None) -> Outputs:
        entering = [known[name].to(self.dtype) for name in self.takes]
        batch = len(entering[0])
        if len(entering) == 1:
            x = entering[0] if entering[0].dim() == 4 else entering[0][:, :, None, None]
        else:
            columns = [each.flatten(1) if each.dim() > 1 else each[:, None] for each in entering]
            x = torch.cat(columns, 1)[:, :, None, None]
        own = slice(self.first, self.first + self.gates)
        given = self._forced(known, forced, own, batch)
        if len(limits) != self.gates:
            limits = limits[own]
        if self.always:
            limits = F.pad(limits, (0, self.always))
            given = None if given is None else F.pad(given, (0, self.always), value=1)
        out: Outputs = self.runner.forward(x, limits, given)  # a module's own call takes microseconds
        if self.always:
            out = out._replace(gates=out.gates[:, : self.gates], scores=out.scores[:, : self.gates])
        for name, output in zip(self.gives, self.outputs, strict=True):
            known[name] = self._output(out, output.shape, output.first, output.stored, batch)
        for name, gate, shape, dtype in self.decided:
            count = math.prod(shape)
            known[name] = out.gates[:, gate : gate + count].to(dtype).reshape(batch, *shape)
        return out

    def _forced(self, known: dict[str, Tensor], forced: Tensor | None, own: slice, batch: int) -> Tensor | None:
        if forced is not None:
            return forced[:, own]
        if not self.given:
            return None
        joined = torch.full((batch, self.gates), _AS_DECIDED, dtype=torch.uint8)
        for first, count, name in self.given:
            gates = known[name].reshape(batch, count)
            if not ((gates == 0) | (gates == 1)).all():
                raise UserError(f"{name} opens gates by values between 0 and 1; expected 0 and 1 in evaluation")
            joined[:, first : first + count] = gates
        return joined

    @staticmethod
    def _output(out: Outputs, shape: tuple[int, ...], first: int, stored: bool, batch: int) -> Tensor:
        if not stored and shape == out.logits.shape[1:]:
            return out.logits
        if not stored:
            count = shape[0] if shape else 1
            return out.logits[:, first : first + count].reshape(batch, *shape)
        values = out.map.flatten(1)
        return values[:, first : first + math.prod(shape)].reshape(batch, *shape)


class _Torch(nn.Module):
    """What torch computes among the sections."""

    def __init__(self, section: TorchSection) -> None:
        super().__init__()
        self.takes, self.gives, self.reasons, self.macs = section.takes, section.gives, section.reasons, section.macs
        self.module: fx.GraphModule = section.module

    def forward(self, known: dict[str, Tensor], batch: int) -> None:
        given = self.module(batch, *(known[name] for name in self.takes))
        known.update(zip(self.gives, given, strict=True))
