"""What a network becomes that :mod:`.gating` made skip: its own modules, and gates around some of them."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .computation import GateMacs
from .errors import UserError
from .functional import choose_filters
from .gates import ForcedGates, check_keys, noisy_decision, resolve_forced_gates
from .selection import Compute, run_gated
from .skipnet import EMBEDDING, RecurrentGate, check_threshold

UnitGateKind = Literal["pooled", "mlp", "recurrent"]
FilterGateKind = Literal["pooled", "mlp"]
_HIDDEN = 16  # width of ConvNet-AIG's hidden layer
_OPEN = 0.88  # what scores begin at: a logit of 2, as in ConvNet-AIG


class GateTrace:
    """What the gates did in the network's current call, or in its last one; all of them share it."""

    def __init__(self) -> None:
        self.begin()

    def begin(
        self, control: nn.Module | None = None, forced: Tensor | None = None, threshold: float | None = None
    ) -> None:
        self.control, self.state, self.forced, self.threshold = control, None, forced, threshold
        self.seen = 0
        self.scores: list[Tensor] = []
        self.taken: list[Tensor] = []

    def decide(self, gate: Any, score: Tensor) -> Tensor:
        """1 or 0 for each of the scores [B] or [B, n], whose gates are the next 1 or n: bool, or learning floats."""
        count = 1 if score.dim() == 1 else score.shape[1]
        threshold = gate.threshold if self.threshold is None else self.threshold
        if self.forced is not None:
            taken = self.forced[:, self.seen : self.seen + count].reshape(score.shape) != 0
        elif gate.training and gate.learns:
            taken = noisy_decision(score, threshold, gate.noise)
        else:
            taken = score > threshold
        self.seen += count
        self.scores.append(score)
        self.taken.append(taken)
        return taken

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a copy of a network, in memory or in a file, has had no call yet

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.begin()


class MaskLink:
    """The mask that a convolution hands to its batch norm."""

    mask: Tensor

    def __getstate__(self) -> dict[str, Any]:
        return {}


def make_gate(kind: UnitGateKind, channels: int, outputs: int = 1) -> nn.Module:
    """From pooled features [B, channels] to logits [B, outputs], or to what the recurrent gate reads.

    - "pooled": a linear layer;
    - "mlp": linear 16, batch norm, ReLU, linear; ConvNet-AIG (https://arxiv.org/abs/1711.11503);
    - "recurrent": the embedding of SkipNet's :class:`.skipnet.RecurrentGate`.

    Raises:
        UserError: ``kind`` is none of them.
    """
    if kind not in get_args(UnitGateKind):
        raise UserError(f"kind is {kind!r}; expected one of {', '.join(get_args(UnitGateKind))}")
    if kind == "recurrent":
        return nn.Linear(channels, EMBEDDING)
    if kind == "pooled":
        return nn.Linear(channels, outputs)
    hidden = nn.Linear(channels, _HIDDEN)
    return nn.Sequential(hidden, nn.BatchNorm1d(_HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, outputs))


def _last_linear(gate: nn.Module) -> nn.Linear:
    return [module for module in gate.modules() if isinstance(module, nn.Linear)][-1]


class _Gated(nn.Module):
    """What holds a gate that decides in the network's call."""

    def __init__(self, part: nn.Module, gate: nn.Module, threshold: float, trace: GateTrace) -> None:
        super().__init__()
        self.gate = gate.train(part.training)
        self.training = part.training
        self.threshold, self.noise = threshold, 1.0
        self._trace = trace

    @property
    def learns(self) -> bool:
        """False once ``requires_grad_(False)`` froze the gate; it then decides in training as in inference."""
        return next(self.gate.parameters()).requires_grad

    def train(self, mode: bool = True) -> _Gated:
        super().train(mode)
        self.gate.train(mode and self.learns)
        return self


class GatedUnit(_Gated):
    """A unit that each image runs or skips: ``where_open(open, unit(x), x)``.

    Its gate reads the mean of x over the pixels; the score is the sigmoid of the gate's logit. In ``eval()``, or with a
    frozen gate, the unit is open iff its score exceeds ``threshold``. A gate that learns decides in training with noise
    of the scale ``noise``, which at 1 draws with the score (:func:`.gates.noisy`), and passes gradients straight
    through to the score. What is computed in training, ``compute`` says; see :func:`.selection.run_gated`.

    ``forward``: [B, C, H, W] to [B, C, H, W]. Within a :class:`GatedNetwork`, whose call it is part of.
    """

    def __init__(self, unit: nn.Module, gate: nn.Module, threshold: float, trace: GateTrace, in_place: bool) -> None:
        super().__init__(unit, gate, threshold, trace)
        self.unit = unit
        self.compute: Compute = "masked"
        self._in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        trace = self._trace
        out = self.gate(x.mean((2, 3)))
        if trace.control is None:
            score = out.squeeze(1).sigmoid()
        else:
            score, trace.state = trace.control(out, trace.state)
        taken = trace.decide(self, score)
        # A unit that works in place on its input must leave that to the images that skip it.
        return run_gated(self.unit, self.unit, (x.clone() if self._in_place else x,), taken, x, self.compute)


class FilterGate(_Gated):
    """A convolution whose filters each image chooses by a gate on the mean of the convolution's input over its pixels.

    It decides as a :class:`GatedUnit` does, for each filter. The batch norm that reads it applies the mask.
    """

    def __init__(self, conv: nn.Module, gate: nn.Module, threshold: float, trace: GateTrace, link: MaskLink) -> None:
        super().__init__(conv, gate, threshold, trace)
        self.conv, self._link = conv, link

    def forward(self, x: Tensor) -> Tensor:
        self._link.mask = self._trace.decide(self, self.gate(x.mean((2, 3))).sigmoid())
        return self.conv(x)


class ChosenNorm(nn.Module):
    """The batch norm of a :class:`FilterGate`'s convolution: ``choose_filters(norm(x), mask)``."""

    def __init__(self, norm: nn.Module, link: MaskLink) -> None:
        super().__init__()
        self.norm, self._link = norm, link
        self.training = norm.training

    def forward(self, x: Tensor) -> Tensor:
        mask = self._link.mask
        del self._link.mask
        return choose_filters(self.norm(x), mask)


class GatedNetwork(nn.Module):
    """A network with gates: called as the network is, with its outputs.

    It has what the networks of this package have that skip by themselves (``gate_counts``, ``last_gates``,
    ``last_scores``, ``forced_gates``, ``thresholds``), so that whatever trains or measures those takes it. ``name`` is
    "units" or "filters"; gates are numbered in the order in which they decide.

    Args of ``forward``, beside the network's own:
        forced_gates: ``{name: uint8 [B, L]}`` of 0 and 1, in place of the decisions.
        thresholds: a number, or ``{name: number}``; each gate's own if not given.

    Attributes:
        network: the network, ``GatedUnit`` or ``FilterGate`` in the places of its parts.
        gate_macs: the MACs of an image like the example: the fixed ones, gates included, and those of each gate.
        config: how to construct it again (:class:`.constructors.ConstructedConfig`), which checkpoints keep and
            measurements ask for the shape of images; None of one that was gated without.
        fresh_classifier: whether the network, as it is, knows nothing of the classes yet; the classifier begins anew.

    Raises:
        UserError: forced gates or thresholds do not fit.
    """

    def __init__(
        self, network: nn.Module, name: str, trace: GateTrace, control: RecurrentGate | None, gate_macs: GateMacs
    ) -> None:
        super().__init__()
        self.network, self.control = network, control and control.train(network.training)
        self.training = network.training
        self.name, self.gate_macs = name, gate_macs
        self.trace = trace
        self._config: Any = None
        self.fresh_classifier = False

    def forward(
        self,
        *args: Any,
        forced_gates: ForcedGates | None = None,
        thresholds: float | Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> Any:
        forced = None
        if forced_gates is not None:
            batch = next(len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            forced = resolve_forced_gates(forced_gates, batch, self.gate_counts)[self.name]
        self.trace.begin(self.control, forced, self._threshold(thresholds))
        out = self.network(*args, **kwargs)
        if torch.compiler.is_exporting():
            self.trace.begin()
        return out

    def _threshold(self, thresholds: float | Mapping[str, float] | None) -> float | None:
        if isinstance(thresholds, Mapping):
            check_keys(thresholds, "thresholds", (self.name,))
            thresholds = thresholds[self.name]
        if thresholds is not None:
            check_threshold(thresholds)
        return thresholds

    @property
    def config(self) -> Any:
        return self._config

    @config.setter
    def config(self, config: Any) -> None:
        """Its thresholds become those of the units."""
        for name, threshold in zip(config.units, config.gate_thresholds, strict=True):
            cast(GatedUnit, self.network.get_submodule(name)).threshold = threshold
        self._config = config

    @property
    def example_images(self) -> Tensor | None:
        """Zeros [1, C, H, W] of the shape of its images, of the dtype and on the device of its weights, if known."""
        config, weight = self._config, next(self.parameters())
        if config is None:
            return None
        return weight.new_zeros(1, config.in_channels, config.image_size, config.image_size)

    def dense_equivalent(self) -> nn.Module:
        """A copy of the network without its gates, its weights included: every unit runs, every filter counts."""
        network = copy.deepcopy(self.network)
        for name, part in [*network.named_modules()]:
            ungated = {GatedUnit: "unit", FilterGate: "conv", ChosenNorm: "norm"}.get(type(part))
            if ungated is not None:
                network.set_submodule(name, part.get_submodule(ungated))
        return network

    @property
    def gate_counts(self) -> dict[str, int]:
        """``{name: L}``, the number of gates."""
        return {name: len(macs) for name, macs in self.gate_macs.gates.items()}

    @property
    def gates(self) -> dict[str, Tensor]:
        """What the gates did in the last call, ``{name: [B, L]}`` of 0 and 1 with the gradients of those that learn."""
        trace = self.trace
        return self._columns([taken.to(score.dtype) for taken, score in zip(trace.taken, trace.scores, strict=True)])

    @property
    def scores(self) -> dict[str, Tensor]:
        """The gates' scores in the last call, ``{name: [B, L]}`` in [0, 1], with their gradients."""
        return self._columns(self.trace.scores)

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """:attr:`gates` as uint8."""
        return {name: gates.detach().to(torch.uint8) for name, gates in self.gates.items()}

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """:attr:`scores` without gradients."""
        return {name: scores.detach() for name, scores in self.scores.items()}

    def _columns(self, values: list[Tensor]) -> dict[str, Tensor]:
        """Of no call yet: nothing."""
        return {self.name: torch.cat([v if v.dim() == 2 else v[:, None] for v in values], 1)} if values else {}

    def cost(self) -> Tensor:
        """The mean MACs of the last call's images as a fraction of the network's without gates; with gradients, [].

        A loss adds, for instance, ``weight * (gated.cost() - 0.6).clamp(min=0) ** 2``.

        Raises:
            UserError: there was no call.
        """
        if not self.trace.scores:
            raise UserError("the network has no last call to tell the cost of; call it first")
        return (self.gate_macs.executed(self.gates) / self.gate_macs.dense).mean()

    def gated(self) -> Iterator[GatedUnit | FilterGate]:
        """The modules that hold a gate, in the network's order."""
        return (module for module in self.network.modules() if isinstance(module, (GatedUnit, FilterGate)))

    def last_linears(self) -> list[nn.Linear]:
        """The layers whose outputs are the gates' logits."""
        return [_last_linear(gate) for gate in ([self.control] if self.control else [g.gate for g in self.gated()])]

    @torch.no_grad()
    def open_gates(self, score: float = _OPEN) -> None:
        """Sets every gate's score to ``score``, in (0, 1), whatever the image; it learns from there."""
        for linear in self.last_linears():
            nn.init.zeros_(linear.weight)
            nn.init.constant_(linear.bias, math.log(score / (1 - score)))

    def hold_gates(self, pattern: Mapping[str, Tensor]) -> None:
        """Thresholds by which every gate is open, or shut, whatever its score: ``{name: [1, L]}`` of 0 and 1.

        Raises:
            UserError: the network does not know its constructor, which is what numbers the gates.
        """
        if self._config is None:
            raise UserError("the network was gated without its constructor; gates are held in one of dsn gate")
        limits = tuple(0.0 if opened else 1.0 for opened in pattern[self.name][0].tolist())
        self.config = dataclasses.replace(self._config, layer_thresholds=limits)

    def gate_parameters(self) -> list[nn.Parameter]:
        """The parameters of the gates."""
        modules = [*(part.gate for part in self.gated()), *([self.control] if self.control else [])]
        return [parameter for module in modules for parameter in module.parameters()]

    def learn_gates(self, learns: bool) -> None:
        """Lets the gates learn, or freezes them; frozen ones decide in training as in inference."""
        for parameter in self.gate_parameters():
            parameter.requires_grad_(learns)
        for part in self.gated():
            part.gate.train(part.training and learns)
