"""SkipNet (Wang et al., https://arxiv.org/abs/1711.09485): a ResNet whose units are kept or bypassed per image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .densenet import check_images, init_weights
from .described import Described
from .errors import UserError
from .gates import ForcedGates, check_keys, noisy_decision, resolve_forced_gates
from .resnet import ZOO as BACKBONES
from .resnet import OnResNet, ResidualUnit, ResNetConfig, config_on, make_resnet_head, make_resnet_stem, make_units
from .selection import Compute, run_gated

SkipGateKind = Literal["rnn", "ff-1", "ff-2"]
UNITS = "units"  # the key of ``last_gates``, ``last_scores`` and ``forced_gates``
EMBEDDING = 10  # width of the recurrent gate's input and of its state

# From the scores [B] of one gate to its values [B] in {0, 1}.
Decide = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SkipNetConfig(ResNetConfig):
    """What :class:`SkipNet` is built from: a residual network and its gates.

    Attributes:
        gate: ``"rnn"``, one recurrent gate shared by all units; ``"ff-1"`` or ``"ff-2"``, one convolutional gate each.
        threshold: a unit is kept iff its score exceeds it; in [0, 1].
        layer_thresholds: one for each gate in place of ``threshold``.

    Raises:
        UserError: a field has a value outside the above.
    """

    gate: SkipGateKind = "rnn"
    threshold: float = 0.5
    layer_thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate not in get_args(SkipGateKind):
            raise UserError(f"gate is {self.gate!r}; expected one of {', '.join(get_args(SkipGateKind))}")
        check_threshold(self.threshold)
        if sum(self.stage_units) < 2:
            raise UserError(f"stage_units is {self.stage_units}; expected two units or more, the first is never gated")
        if self.layer_thresholds is not None:
            object.__setattr__(self, "layer_thresholds", tuple(self.layer_thresholds))
            gates = sum(self.stage_units) - 1
            if len(self.layer_thresholds) != gates:
                raise UserError(f"layer_thresholds has {len(self.layer_thresholds)} numbers; expected {gates}")
            for threshold in self.layer_thresholds:
                check_threshold(threshold)


def check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold!r}; expected a number in [0, 1]")


def resolve_thresholds(thresholds: float | Mapping[str, float] | None, config: SkipNetConfig) -> tuple[float, ...]:
    """One threshold per gate: the given one, as a number or under ``"units"``, else the configuration's.

    Raises:
        UserError: it is not a number in [0, 1], or stands under another name.
    """
    if thresholds is None:
        if config.layer_thresholds is not None:
            return config.layer_thresholds
        thresholds = config.threshold
    if isinstance(thresholds, Mapping):
        check_keys(thresholds, "thresholds", (UNITS,))
        thresholds = thresholds[UNITS]
    check_threshold(thresholds)
    return (thresholds,) * (sum(config.stage_units) - 1)


class FeedForwardGate(nn.Module):
    """FF-I and FF-II gates: convolutions, then the softmax of two logits. Section 2; layers as in the authors' code.

    FF-I: max-pool 2, 3x3-BN-ReLU, 3x3/2-BN-ReLU; FF-II: 3x3/2-BN-ReLU. Both: global average, linear C->2, softmax.
    ``forward``: the unit's input [B, C, H, W] to the probability of keeping it, [B].
    """

    def __init__(self, channels: int, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=1 if deep else 2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        if deep:
            self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
            self.norm2 = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.deep:
            x = F.max_pool2d(x, 2)
        x = F.relu(self.norm1(self.conv1(x)))
        if self.deep:
            x = F.relu(self.norm2(self.conv2(x)))
        return self.linear(x.mean((2, 3))).softmax(1)[:, 1]


class RecurrentGate(nn.Module):
    """The part of the RNN gate that all units share: LSTM(10, 10), linear 10->1, sigmoid. Section 2.

    ``forward``: an embedding [B, 10] and the state after the gate before, None at an image's first gate, to the
    probability of keeping the unit, [B], and the new state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTMCell(EMBEDDING, EMBEDDING)
        self.proj = nn.Linear(EMBEDDING, 1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = self.rnn(x, state)
        return self.proj(state[0]).squeeze(1).sigmoid(), state


class SkipNet(OnResNet, Described, nn.Module):
    """The network. With x_i the merged output of unit i, F its residual, S its shortcut and the first unit ungated:

    ``x_{i+1} = g_i ReLU(S(x_i) + F(x_i)) + (1 - g_i) S(x_i)``, equation 1; ``g_i = 1(score_i > threshold)``.

    A bypassed unit passes its shortcut on, down-sampled where the shape changes, without the ReLU; this is the truth
    that kernels are held to. ``train()`` takes the same decisions and passes gradients straight through to the scores
    (section 2.2, supervised pre-training), unless the gates are frozen. In training every unit is computed for every
    image, as in the paper, unless ``set_compute(model, "selected")`` leaves that to :func:`.selection.run_gated`.

    ``forward(images, forced_gates=None, thresholds=None, decide=None)``: images [B, in_channels, image_size,
    image_size] to logits [B, classes]. Afterwards ``last_gates`` and ``last_scores`` hold ``{"units": [B, L]}``: what
    each gate did (uint8, 1 = kept) and its score, detached; L = units - 1.

    The gate of the last unit's output decides nothing. It is there, frozen, because the authors' networks have it and
    their parameter counts and files with it.

    Args of ``forward``:
        forced_gates: ``{"units": uint8 [B, L]}`` of 0 and 1, in place of the decisions.
        thresholds: a number, or ``{"units": number}``; the configuration's if not given.
        decide: from one gate's scores [B] to its values [B] in {0, 1}, in place of the threshold; called L times.

    Raises:
        UserError: images, forced gates or thresholds do not fit.
    """

    def __init__(self, config: SkipNetConfig) -> None:
        super().__init__()
        self.config = config
        self.compute: Compute = "masked"
        self.noise = 0.0
        self.stem = make_resnet_stem(config)
        units = make_units(config)
        self.units = nn.ModuleList(units)
        self.head = make_resnet_head(config)
        stages = zip(config.stage_widths, config.stage_units, strict=True)
        channels = [width for width, count in stages for _ in range(count)]
        if config.gate == "rnn":
            self.gates = nn.ModuleList(nn.Linear(width, EMBEDDING) for width in channels)
            self.control = RecurrentGate()
        else:
            self.gates = nn.ModuleList(FeedForwardGate(width, config.gate == "ff-1") for width in channels)
        self.gates[-1].requires_grad_(False)
        init_weights(self)
        self.last_gates: dict[str, Tensor] = {}
        self.last_scores: dict[str, Tensor] = {}

    @property
    def gate_counts(self) -> dict[str, int]:
        """``{"units": L}``, the number of gates that decide: one less than units."""
        return {UNITS: len(self.units) - 1}

    def forward(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: float | Mapping[str, float] | None = None,
        decide: Decide | None = None,
    ) -> Tensor:
        config = self.config
        dtype = next(self.parameters()).dtype
        check_images(images, config.in_channels, config.image_size, dtype)
        forced = resolve_forced_gates(forced_gates, images.shape[0], self.gate_counts)[UNITS]
        decisions = [decide or self.decision(limit) for limit in resolve_thresholds(thresholds, config)]
        x = self.units[0](self.stem(images))
        state: tuple[Tensor, Tensor] | None = None
        taken, scores = [], []
        for i, unit in enumerate(list(self.units)[1:]):
            assert isinstance(unit, ResidualUnit)
            score, state = self._score(i, x.mean((2, 3)) if config.gate == "rnn" else x, state)
            gate = decisions[i](score) if forced is None else forced[:, i].to(dtype)
            shortcut = unit.shortcut(x)
            x = run_gated(unit, unit.with_shortcut, (x, shortcut), gate, shortcut, self.compute)
            taken.append(gate.detach() != 0)
            scores.append(score)
        self.last_gates = {UNITS: torch.stack(taken, 1).to(torch.uint8)}
        self.last_scores = {UNITS: torch.stack(scores, 1).detach()}
        return self.head(x)

    def _score(
        self, i: int, x: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The score [B] of gate i and the recurrent gate's new state; x is its pooled input, or its input."""
        return self.control(self.gates[i](x), state) if self.config.gate == "rnn" else (self.gates[i](x), None)

    def gate_scores(self, inputs: Sequence[Tensor]) -> Tensor:
        """The scores [B, L] of all gates from what each reads: pooled features [B, C] (RNN) or maps [B, C, H, W]."""
        scores, state = [], None
        for i, x in enumerate(inputs):
            score, state = self._score(i, x, state)
            scores.append(score)
        return torch.stack(scores, 1)

    def decision(self, threshold: float) -> Decide:
        """What ``forward`` decides by: 1 iff a score exceeds ``threshold``; gates that learn pass gradients through.

        Gates that learn do so with noise of the scale ``noise``, 0 to begin with; see :func:`.gates.noisy`.
        """
        learn = next(self.gates[0].parameters()).requires_grad

        def decide(score: Tensor) -> Tensor:
            if not (self.training and learn):
                return (score > threshold).to(score.dtype)
            return noisy_decision(score, threshold, self.noise)

        return decide

    def open_gates(self, score: float = 0.75) -> None:
        """Biases every gate towards ``score``, in (0, 1): the network begins close to the ungated one.

        Sets the bias of the recurrent gate's projection, or of each feed-forward gate's linear layer. How gates begin
        is not in the paper: this is our option for a trained backbone.
        """
        for linear in self.last_linears():
            nn.init.zeros_(linear.bias)
            linear.bias.data[-1] = math.log(score / (1 - score))

    def learn_gates(self, learns: bool) -> None:
        """Lets the gates that decide learn, or freezes them."""
        for parameter in self.gate_parameters():
            parameter.requires_grad_(learns)

    def gate_parameters(self) -> list[nn.Parameter]:
        """The parameters of the gates that decide."""
        modules = [*list(self.gates)[:-1], *([self.control] if self.config.gate == "rnn" else [])]
        return [parameter for module in modules for parameter in module.parameters()]

    def hold_gates(self, pattern: Mapping[str, Tensor]) -> None:
        """Thresholds by which every gate is open, or shut, whatever its score: ``{"units": [1, L]}`` of 0 and 1."""
        limits = tuple(0.0 if opened else 1.0 for opened in pattern[UNITS][0].tolist())
        self.config = dataclasses.replace(self.config, layer_thresholds=limits)

    def last_linears(self) -> list[nn.Linear]:
        """The layers whose last output, less the others, is the logit of a score."""
        if self.config.gate == "rnn":
            return [self.control.proj]
        return [gate.linear for gate in self.gates if isinstance(gate, FeedForwardGate)]


_CIFAR_GATES: tuple[tuple[int, str, SkipGateKind], ...] = (
    *((depth, "rnn", "rnn") for depth in (38, 74, 110, 152)),
    (38, "ff", "ff-1"), (74, "ff", "ff-1"), (110, "ff", "ff-2"), (152, "ff", "ff-2"),
)  # fmt: skip

ZOO = (
    *(
        (SkipNetConfig(f"skipnet-{d}-{label}", (d // 6,) * 3, (16, 32, 64), 16, "basic", 10, gate=gate), "CIFAR-10")
        for d, label, gate in _CIFAR_GATES
    ),
    *(
        (config_on(SkipNetConfig, config, name=f"skipnet-{config.name.removeprefix('resnet-')}-rnn-imagenet"), dataset)
        for config, dataset in BACKBONES
        if dataset == "ImageNet"
    ),
    # Not the paper's: on the published ResNet-32, whose shortcuts have no weights.
    (SkipNetConfig("skipnet-32-rnn", (5, 5, 5), (16, 32, 64), 16, "basic", 10, shortcut="pad"), "CIFAR-10"),
)
