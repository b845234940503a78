"""A whole network, accelerated, whatever its family: one operator from image to logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsn_models.densenet import check_images
from dsn_models.described import card
from dsn_models.errors import UserError
from dsn_models.gates import ForcedGates, zeros_and_ones
from dsn_models.macs import count_macs
from dsn_models.world import check_range

from .. import graph as graphs
from ..capture import FAMILIES, Captured, Chosen, canonical, capture
from ..graph import Graph
from ..ops import Outputs, refuse_gradients
from .cuda_graphs import make_cuda_graphs
from .fixed import Fixed, told
from .runner import make_runner
from .target import CPU, Target

Thresholds = float | Mapping[str, float]


class Planned(Fixed):
    """A graph and what runs it, behind torch's own stem where that is more than a 3x3 convolution."""

    def __init__(self, captured: Captured, target: Target) -> None:
        super().__init__()
        self.target, self.stem_macs = target, captured.stem_macs
        stem: Any = captured.stem
        if stem is not None:
            # torch's max pool on the CPU takes a tenth of the time channels last.
            layout = torch.channels_last if target.backend == "cpu" else torch.preserve_format
            stem = stem.to(dtype=target.map_dtype, memory_format=layout)
        self.stem: nn.Module | None = stem
        self.runner = make_runner(captured.graph, target.dtype, target.backend)
        self._cuda_graphs = make_cuda_graphs(self.runner, target.cuda_graph)

    @property
    def graph(self) -> Graph:
        """What is run, with tensors that have a shape alone."""
        return self.runner.graph

    def _run(self, images: Tensor, limits: Tensor, forced: Tensor | None) -> Outputs:
        x = images
        if self.stem is not None:
            refuse_gradients(images)
            x = self.stem(images.to(self.target.map_dtype))
        if self.target.backend == "cpu":
            x = x.float()
        return (self._cuda_graphs or self.runner.forward)(x, limits, forced)  # a module's own call takes microseconds


class Chooser(Planned):
    """What chooses another network's filters. ``forward``: images to the filters' scores [B, c]."""

    limits: Tensor

    def __init__(self, chosen: Chosen, target: Target) -> None:
        # Filters are chosen in float32 on the CPU.
        super().__init__(capture(chosen.gater), CPU if target.backend == "cpu" else target)
        self.last = copy.deepcopy(chosen.last)
        self.register_buffer("limits", torch.empty(0, dtype=torch.float32), persistent=False)
        own = int(graphs.count_macs(self.graph, torch.empty(1, 0)))
        self.macs = own + self.stem_macs + self.last.weight.numel()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(F.relu(self._run(images, self.limits, None).logits))


class Result(NamedTuple):
    """What a call of an :class:`Accelerated` network computed and did.

    Attributes:
        outputs: as the reference's: logits [B, classes], or a tuple of them.
        gates: what each gate did, uint8 [B, L] by name: 1 = open.
        scores: the gates' scores, float32 [B, L] by name.
        macs: multiply-accumulates, counted by the kernels while they ran, int64 [B].

    >>> import torch, dsn_models, dsn_kernels
    >>> fast = dsn_kernels.accelerate(dsn_models.create("dsn-navon", image_size=16))
    >>> result = fast.run(torch.rand(2, 1, 16, 16))
    >>> result.macs.shape
    torch.Size([2])
    """

    outputs: Tensor | tuple[Tensor, ...]
    gates: dict[str, Tensor]
    scores: dict[str, Tensor]
    macs: Tensor


class Accelerated(Planned):
    """Same call and same outputs as the reference network in ``eval()``; computes only what the gates select.

    It stands for any network of `dsn_models`. After each call ``last_gates`` and ``last_scores`` hold what the
    reference's hold, and ``last_macs`` what the kernels counted. Of a GaterNet the gater runs first, then only the
    filters that it chose; a filter that is off costs no MACs, nor does a channel that a mask left without data.

    Args:
        model: the reference network.
        target: what it runs on.

    Args of ``forward``:
        images: [B, in_channels, image_size, image_size], float32 or of the target's dtype.
        forced_gates: ``{name: [B, L]}`` of 0 and 1 of any type, for each name in ``layers``, instead of the decisions.
        thresholds: a number, or one for each name; the configuration's if not given.

    Raises:
        UserError: images, forced gates or thresholds do not fit or lie on another device, or forced gates hold anything
            but 0 and 1 (on a GPU the host waits to see, unless the call is compiled or captured); on a GPU also: a
            batch is larger than the captured sizes, or a CUDA graph cannot be captured.

    >>> import torch, dsn_models, dsn_kernels
    >>> fast = dsn_kernels.accelerate(dsn_models.create("skipnet-38-rnn", stage_units=(1, 1, 1)))
    >>> fast
    <skipnet-38-rnn, accelerated: cpu, float32, gates: 2 units, 12.50 M MACs with all open>
    >>> shut = fast(torch.rand(1, 3, 32, 32), forced_gates={"units": torch.zeros(1, 2)})
    >>> fast.last_gates
    {'units': tensor([[0, 0]], dtype=torch.uint8)}
    """

    thresholds: Tensor
    _plan_limits: Tensor

    def __init__(self, model: Any, target: Target = CPU) -> None:
        given, model = model, canonical(model)
        family = FAMILIES[type(model)]
        chosen = family.chosen(model) if family.chosen else None
        super().__init__(capture(chosen.backbone, chosen.masks) if chosen else capture(model), target)
        self.config = model.config
        self.family = type(model)
        self.num_parameters = sum(parameter.numel() for parameter in given.parameters())
        self.reference_dtype = next(given.parameters()).dtype  # of the images that it takes
        self.layers: dict[str, int] = dict(getattr(model, "gate_counts", {}))
        self.gater = Chooser(chosen, target) if chosen else None
        limits = self._per_gate(None)
        self.register_buffer("thresholds", limits, persistent=False)
        # A gater's decisions reach the plan as forced gates; layers that are not gated run whatever this says.
        all_open = torch.full((self.graph.gates,), 0.5, dtype=torch.float32)
        self.register_buffer("_plan_limits", all_open, persistent=False)
        # Gates, scores and MACs of the last call.
        self._last = (limits.new_empty(0, len(limits)).byte(), limits.new_empty(0, len(limits)), torch.empty(0).long())
        # In a tuple, since it is no part of this module.
        self._without_weights = (model.to("meta"),)
        self.eval()
        self.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: Thresholds | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        outputs, last = self._call(images, forced_gates, thresholds)
        if not torch.compiler.is_exporting():  # an exported program returns the logits alone
            self._last = last
        return outputs

    def run(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: Thresholds | None = None,
    ) -> Result:
        """As a call, with what that call did beside its outputs: for threads that share the network.

        Leaves ``last_gates``, ``last_scores`` and ``last_macs`` as they are.
        """
        outputs, (gates, scores, macs) = self._call(images, forced_gates, thresholds)
        return Result(outputs, self._split(gates), self._split(scores), macs + self._other_macs)

    def _call(
        self, images: Tensor, forced_gates: ForcedGates | None, thresholds: Thresholds | None
    ) -> tuple[Tensor | tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """The outputs; gates, scores and MACs."""
        self._check(images)
        check_range(self, images)
        images = images if images.dtype == self.target.dtype else images.float()
        limits = self.thresholds if thresholds is None else self._per_gate(thresholds).to(self.thresholds.device)
        forced = None if forced_gates is None else self._join(forced_gates, images.shape[0])
        chosen = None
        if self.gater is not None:
            chosen = self.gater(images)
            forced = (chosen - limits > 0).to(torch.uint8) if forced is None else forced
        gated = self.gater is None and len(self.layers) > 0
        out = self._run(images, limits if gated else self._plan_limits, forced)
        classes = self.config.classes
        outputs = out.logits.split(classes, 1) if isinstance(classes, tuple) else out.logits
        return outputs, (out.gates, out.scores if chosen is None else chosen, out.macs)

    def _check(self, images: Tensor) -> None:
        own = isinstance(images, Tensor) and images.dtype in (self.target.dtype, self.reference_dtype)
        dtype = images.dtype if own else torch.float32
        check_images(images, self.config.in_channels, self.config.image_size, dtype)
        if images.device != self.thresholds.device:
            raise UserError(f"images are on {images.device}; expected {self.thresholds.device}: move them or the model")

    def _repr_html_(self) -> str:
        """How a notebook shows it: what it is and what its last call did."""
        limits = [part.tolist() for part in self.thresholds.split(list(self.layers.values()))]
        title = f"{self.config.name}, accelerated"
        facts = (self.num_parameters, self.dense_macs, self.last_macs)
        return card(title, self.layers, limits, self.last_gates, *facts)

    def __repr__(self) -> str:
        """What it is, in a line: its network, backend, type, gates and MACs."""
        opened = {name: torch.ones(1, count, dtype=torch.uint8) for name, count in self.layers.items()}
        return told(self.config.name, self.target, self.layers, int(self.macs(opened)[0]))

    def summary(self) -> str:
        """A line for each part that runs: its backend, nodes and MACs for each image with all gates open."""
        dense = [f"{self.config.name} on {self.target.backend}, {str(self.target.dtype).removeprefix('torch.')}"]
        for name, part in self.parts.items():
            opened = int(graphs.count_macs(part.graph, torch.ones(1, part.graph.gates, dtype=torch.uint8)))
            where = f"{name}: " if name else ""
            if part.stem is not None:
                dense.append(f"  {where}torch: the stem, {part.stem_macs / 1e6:.2f} M MACs")
            nodes, gates = len(part.graph.nodes), part.graph.gates
            dense.append(f"  {where}kernels: {nodes} nodes, {gates} gates, {opened / 1e6:.2f} M MACs with all open")
        return "\n".join(dense)

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """What each gate did in the last call, uint8 [B, L] by name: 1 = open."""
        return self._split(self._last[0])

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """The gates' scores in the last call, float32 [B, L] by name."""
        return self._split(self._last[1])

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates of the last call, counted by the kernels while they ran, int64 [B]."""
        return self._last[2] + self._other_macs

    @cached_property
    def dense_macs(self) -> int:
        """MACs per image of the network without gates, by torch's counter; counted when first asked for."""
        (model,) = self._without_weights
        return count_macs(getattr(model, "dense_equivalent", lambda: model)(), self.config)

    @property
    def parts(self) -> dict[str, Planned]:
        """What holds a graph, in the order in which it runs: this alone, or the gater and this, the backbone."""
        return {"": self} if self.gater is None else {"gater": self.gater, "backbone": self}

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs executed for ``{name: [B, L]}`` of 0 and 1, a gater included, by formula: int64 [B].

        Equal to ``last_macs``; see :func:`dsn_kernels.graph.count_macs` for what is counted. Without gates, [1].
        """
        joined = torch.cat([gates[name] for name in self.layers], 1) if self.layers else torch.empty(1, 0)
        return graphs.count_macs(self.graph, joined) + self._other_macs

    @property
    def _other_macs(self) -> int:
        return self.stem_macs + (0 if self.gater is None else self.gater.macs)

    def _per_gate(self, thresholds: Thresholds | None) -> Tensor:
        """The thresholds of all gates, one branch after the other."""
        resolve = FAMILIES[self.family].limits
        if resolve is None:
            if thresholds is not None:
                raise UserError(f"thresholds are for networks whose gates have them; {self.config.name} has none")
            return torch.empty(0, dtype=torch.float32)
        limits = resolve(thresholds, self.config)
        parts = [
            torch.as_tensor(limits[name], dtype=torch.float32).expand(count) for name, count in self.layers.items()
        ]
        return torch.cat(parts)

    def _split(self, joined: Tensor) -> dict[str, Tensor]:
        parts = joined[:, : sum(self.layers.values())].split(list(self.layers.values()), 1) if self.layers else []
        return dict(zip(self.layers, parts, strict=True))

    def _join(self, forced_gates: ForcedGates, batch: int) -> Tensor | None:
        names = " and ".join(repr(name) for name in self.layers) or "nothing: the network has no gates"
        if not isinstance(forced_gates, Mapping) or set(forced_gates) != set(self.layers):
            given = str(sorted(forced_gates)) if isinstance(forced_gates, Mapping) else type(forced_gates).__name__
            raise UserError(f"forced_gates is {given}; expected a mapping with {names}")
        resolved = []
        for name, count in self.layers.items():
            gates = zeros_and_ones(name, forced_gates[name], [batch, count])
            resolved.append(gates)
            if gates.device != self.thresholds.device:
                where = f"{gates.device}; expected {self.thresholds.device}"
                raise UserError(f"forced_gates['{name}'] is on {where}: move it or the model")
        if not self.layers:
            return None
        return torch.cat(resolved, 1)
