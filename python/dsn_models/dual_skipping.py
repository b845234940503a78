"""Dual Skipping Networks (Cheng et al., CVPR 2018): a coarse and a fine branch whose layers are gated per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .densenet import DenseLayer, Head, StemKind, Transition, check_images, init_weights, make_stem
from .described import Described
from .errors import UserError
from .gates import ForcedGates, GateKind, PooledGate, check_keys, resolve_forced_gates
from .resnet import PreActivationUnit
from .selection import Compute, run_gated

Merge = Literal["concat", "add"]
BRANCHES = ("coarse", "fine")

Thresholds = float | Mapping[str, float]


@dataclass(frozen=True)
class DualSkippingConfig:
    """What :class:`DualSkippingNetwork` is built from.

    Attributes:
        name: zoo name.
        growth_rate: k; the stem has 2k channels.
        block_layers: gated layers of each block, the same in both branches.
        bottleneck: dense layers are BN-ReLU-1x1(4k)-BN-ReLU-3x3(k), else BN-ReLU-3x3(k). Concat merge only.
        compression: a transition keeps floor(compression x channels). Concat merge only.
        merge: ``"concat"`` (DenseNet) or ``"add"`` (pre-activation residual units).
        gate: ``"hard"`` or ``"soft"``.
        gate_norm: gates normalise what they read; see :class:`.gates.PooledGate`. Not the paper's.
        guide: the coarse branch's last features join the input of the fine branch's last transition.
        classes: of the coarse and of the fine task.
        in_channels, image_size: images are [B, in_channels, image_size, image_size].
        stem: ``"conv3x3"`` or ``"imagenet"``.
        thresholds: gate thresholds of the coarse and of the fine branch, in [0, 1].
        stage_widths: channels of each block. Add merge only.

    Raises:
        UserError: a field has a value outside the above.
    """

    name: str
    growth_rate: int
    block_layers: tuple[int, ...]
    bottleneck: bool
    compression: float = 1.0
    merge: Merge = "concat"
    gate: GateKind = "hard"
    guide: bool = True
    classes: tuple[int, int] = (20, 100)
    in_channels: int = 3
    image_size: int = 32
    stem: StemKind = "conv3x3"
    thresholds: tuple[float, float] = (0.5, 0.5)
    stage_widths: tuple[int, ...] = ()
    gate_norm: bool = False

    def __post_init__(self) -> None:
        for field, allowed in (("merge", Merge), ("gate", GateKind), ("stem", StemKind)):
            if getattr(self, field) not in get_args(allowed):
                raise UserError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(get_args(allowed))}")
        if not self.block_layers or min(self.block_layers) < 1:
            raise UserError(f"block_layers is {self.block_layers}; expected one positive number per block")
        if self.growth_rate < 1 or self.in_channels < 1 or self.image_size < 1:
            raise UserError("growth_rate, in_channels and image_size must be positive")
        if not 0 < self.compression <= 1:
            raise UserError(f"compression is {self.compression}; expected a number in (0, 1]")
        if len(self.classes) != 2 or min(self.classes) < 1:
            raise UserError(f"classes is {self.classes}; expected two positive numbers: coarse, fine")
        if len(self.thresholds) != 2:
            raise UserError(f"thresholds is {self.thresholds}; expected two numbers: coarse, fine")
        for branch, threshold in zip(BRANCHES, self.thresholds, strict=True):
            _check_threshold(threshold, branch)
        if self.guide and len(self.block_layers) < 2:
            raise UserError("a guide needs a transition to join; expected two blocks or more, or guide=False")
        if self.merge == "add":
            if len(self.stage_widths) != len(self.block_layers):
                raise UserError(f"stage_widths is {self.stage_widths}; expected one width per block")
            if self.stage_widths[0] != 2 * self.growth_rate or any(w % 4 for w in self.stage_widths):
                raise UserError(
                    f"stage_widths is {self.stage_widths}; expected multiples of 4 that begin with "
                    f"2 x growth_rate = {2 * self.growth_rate}"
                )
        elif self.stage_widths:
            raise UserError("stage_widths is for merge='add'; the concat merge's widths follow from growth_rate")


class SkipDenseBlock(nn.Module):
    """Gated layers on one feature map. Section 3.1 of the paper.

    For layer i with input x (concat: everything before it; add: the running sum), p = global average of x:

    - ``eval()``: runs iff ``score(p) > threshold``; its output is kept as it is, else zeros take its place.
    - ``train()``: its output is multiplied by the gate's training multiplier; a frozen gate decides as in ``eval()``,
      and a binary one by itself.
    - ``forced``: the given 0 or 1 takes the place of the decision, or of the multiplier.

    This is the truth that kernels are held to. In training every layer is computed for every image, as in the paper,
    unless ``set_compute(model, "selected")`` leaves that to :func:`.selection.run_gated`.
    """

    def __init__(
        self,
        in_channels: int,
        layers: list[nn.Module],
        growth_rate: int,
        merge: Merge,
        gate: GateKind,
        gate_norm: bool = False,
    ) -> None:
        super().__init__()
        step = growth_rate if merge == "concat" else 0
        self.layers = nn.ModuleList(layers)
        self.gates = nn.ModuleList(PooledGate(in_channels + i * step, gate, gate_norm) for i in range(len(layers)))
        self.merge = merge
        self.compute: Compute = "masked"

    def forward(
        self, x: Tensor, threshold: float = 0.5, forced: Tensor | None = None, factors: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, C, H, W] to the block's output [B, C', H, W], gates taken uint8 [B, L], scores of x's dtype [B, L].

        ``factors``, if given, receives what each layer's output was multiplied by, [B] each.
        """
        taken, scores = [], []
        pooled = x.mean((2, 3))
        for i, (layer, gate) in enumerate(zip(self.layers, self.gates, strict=True)):
            assert isinstance(gate, PooledGate)
            score = gate.score(pooled)
            take = score > threshold if forced is None else forced[:, i] != 0
            learns = self.training and forced is None and gate.learns
            factor = gate(pooled) if learns else take.to(x.dtype)
            if learns and gate.binary:
                take = factor.detach() != 0
            y = run_gated(layer, layer, (x,), factor, None, self.compute)
            if factors is not None:
                factors.append(factor)
            if self.merge == "concat":
                x = torch.cat([x, y], 1)
                pooled = torch.cat([pooled, y.mean((2, 3))], 1)
            else:
                x = x + y
                pooled = x.mean((2, 3))
            taken.append(take.to(torch.uint8))
            scores.append(score.detach())
        return x, torch.stack(taken, 1), torch.stack(scores, 1)


def _make_block(config: DualSkippingConfig, index: int, channels: int) -> tuple[SkipDenseBlock, int]:
    count = config.block_layers[index]
    layers: list[nn.Module]
    if config.merge == "concat":
        k = config.growth_rate
        layers = [DenseLayer(channels + i * k, k, config.bottleneck) for i in range(count)]
        out_channels = channels + count * k
    else:
        layers = [PreActivationUnit(channels, channels) for _ in range(count)]
        out_channels = channels
    block = SkipDenseBlock(channels, layers, config.growth_rate, config.merge, config.gate, config.gate_norm)
    return block, out_channels


class Branch(nn.Module):
    """One task's blocks, the transitions between them and the head.

    Args:
        config: the network's configuration.
        classes: of this branch's task.
        guide_channels: channels of the guide that joins the last transition's input, 0 for none.
    """

    def __init__(self, config: DualSkippingConfig, classes: int, guide_channels: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        channels = 2 * config.growth_rate
        last = len(config.block_layers) - 1
        for i in range(last + 1):
            if i > 0:
                width = int(config.compression * channels) if config.merge == "concat" else config.stage_widths[i]
                self.transitions.append(Transition(channels + (guide_channels if i == last else 0), width))
                channels = width
            block, channels = _make_block(config, i, channels)
            self.blocks.append(block)
        self.channels = channels
        self._block_layers = config.block_layers
        self.head = self.make_head(classes)

    @property
    def num_layers(self) -> int:
        """L, the number of gated layers."""
        return sum(self._block_layers)

    def make_head(self, classes: int) -> Head:
        """The head, on ``self.channels`` channels."""
        return Head(self.channels, classes)

    def classify(self, x: Tensor, path: Tensor) -> Tensor:
        """The last block's output and the path through the layers, [B, L] of x's dtype, to logits [B, classes]."""
        return self.head(x)

    def forward(
        self, x: Tensor, guide: Tensor | None = None, threshold: float = 0.5, forced: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Stem features to logits [B, classes], gates uint8 [B, L], scores [B, L], the last block's output."""
        taken, scores, first = [], [], 0
        factors: list[Tensor] = []
        extra = (factors,) if self.training else ()  # in eval() the path is what was taken
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = self.transitions[i - 1](join_guide(x, guide if i == len(self.blocks) - 1 else None))
            count = self._block_layers[i]
            x, t, s = block(x, threshold, None if forced is None else forced[:, first : first + count], *extra)
            first += count
            taken.append(t)
            scores.append(s)
        gates = torch.cat(taken, 1)
        path = torch.stack(factors, 1) if self.training else gates.to(x.dtype)
        return self.classify(x, path), gates, torch.cat(scores, 1), x


def join_guide(x: Tensor, guide: Tensor | None) -> Tensor:
    """``cat([x, guide up-sampled bilinearly to x's size], 1)``, or x where there is no guide. Section 3.2."""
    if guide is None:
        return x
    guide = F.interpolate(guide, size=x.shape[2:], mode="bilinear", align_corners=False)
    return torch.cat([x, guide], 1)


class DualSkippingNetwork(Described, nn.Module):
    """The network: a shared stem, a coarse and a fine branch, and the guide from the one to the other.

    ``forward(images, forced_gates=None, thresholds=None)``: images [B, in_channels, image_size, image_size] to the
    logits of the coarse and of the fine task, [B, classes] each. Afterwards ``last_gates`` and ``last_scores`` hold
    ``{"coarse": [B, L], "fine": [B, L]}``: what each layer did (uint8, 1 = ran) and its slope-1 score.

    Args of ``forward``:
        forced_gates: ``{"coarse": uint8 [B, L], "fine": uint8 [B, L]}`` of 0 and 1, in place of the decisions.
        thresholds: a number for both branches, or one per branch by name; the configuration's if not given.

    Raises:
        UserError: images, forced gates or thresholds do not fit.
    """

    branch_type: type[Branch] = Branch

    def __init__(self, config: DualSkippingConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = make_stem(config.stem, config.in_channels, 2 * config.growth_rate)
        self.coarse = self.branch_type(config, config.classes[0])
        self.fine = self.branch_type(config, config.classes[1], self.coarse.channels if config.guide else 0)
        init_weights(self)
        self.last_gates: dict[str, Tensor] = {}
        self.last_scores: dict[str, Tensor] = {}

    @property
    def gate_counts(self) -> dict[str, int]:
        """L of each branch, by name."""
        return {name: getattr(self, name).num_layers for name in BRANCHES}

    def forward(
        self, images: Tensor, forced_gates: ForcedGates | None = None, thresholds: Thresholds | None = None
    ) -> tuple[Tensor, Tensor]:
        config = self.config
        check_images(images, config.in_channels, config.image_size, next(self.parameters()).dtype)
        limits = resolve_thresholds(thresholds, config)
        forced = resolve_forced_gates(forced_gates, images.shape[0], self.gate_counts)
        x = self.stem(images)
        coarse, coarse_taken, coarse_scores, guide = self.coarse(x, None, limits["coarse"], forced["coarse"])
        fine, fine_taken, fine_scores, _ = self.fine(x, guide if config.guide else None, limits["fine"], forced["fine"])
        self.last_gates = {"coarse": coarse_taken, "fine": fine_taken}
        self.last_scores = {"coarse": coarse_scores, "fine": fine_scores}
        return coarse, fine

    def gate_parameters(self) -> list[nn.Parameter]:
        """The parameters of the gates."""
        gates = (module for module in self.modules() if isinstance(module, PooledGate))
        return [parameter for gate in gates for parameter in gate.parameters()]

    @torch.no_grad()
    def hold_gates(self, pattern: Mapping[str, Tensor]) -> None:
        """Sets every gate to be open, or shut, whatever its input: ``pattern`` [1, L] of 0 and 1 by branch."""
        for name in BRANCHES:
            gates = [module for module in getattr(self, name).modules() if isinstance(module, PooledGate)]
            for gate, opened in zip(gates, pattern[name][0].tolist(), strict=True):
                nn.init.zeros_(gate.linear.weight)
                far = 0.5 if gate.kind == "hard" else 20.0
                nn.init.constant_(gate.linear.bias, far if opened else -far)

    def dense_equivalent(self) -> DenseDual:
        """The same weights without gates: every layer runs. Shares this network's parameters."""
        return DenseDual(self)


class _DenseBranch(nn.Module):
    def __init__(self, branch: Branch, merge: Merge) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*block.get_submodule("layers").children()) for block in branch.blocks)
        self.transitions = branch.transitions
        self.head = branch.head
        self.merge = merge

    def forward(self, x: Tensor, guide: Tensor | None = None) -> tuple[Tensor, Tensor]:
        for i, layers in enumerate(self.blocks):
            if i > 0:
                x = self.transitions[i - 1](join_guide(x, guide if i == len(self.blocks) - 1 else None))
            for layer in layers.children():
                x = torch.cat([x, layer(x)], 1) if self.merge == "concat" else x + layer(x)
        return self.head(x), x


class DenseDual(nn.Module):
    """A dual network in which every layer runs: what a user without gates would deploy. Plain and traceable.

    ``forward``: images [B, in_channels, image_size, image_size] to coarse and fine logits.
    """

    def __init__(self, network: DualSkippingNetwork) -> None:
        super().__init__()
        self.stem = network.stem
        self.coarse = _DenseBranch(network.coarse, network.config.merge)
        self.fine = _DenseBranch(network.fine, network.config.merge)
        self.guide = network.config.guide
        self.train(network.training)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(images)
        coarse, guide = self.coarse(x)
        fine, _ = self.fine(x, guide if self.guide else None)
        return coarse, fine


def _check_threshold(threshold: float, branch: str) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
        raise UserError(f"threshold of the {branch} branch is {threshold!r}; expected a number in [0, 1]")


def resolve_thresholds(thresholds: Thresholds | None, config: DualSkippingConfig) -> dict[str, float]:
    """One threshold per branch: the given number or mapping, else the configuration's.

    Raises:
        UserError: a threshold is not a number in [0, 1], or a branch is missing or unknown.
    """
    if thresholds is None:
        return dict(zip(BRANCHES, config.thresholds, strict=True))
    if isinstance(thresholds, Mapping):
        check_keys(thresholds, "thresholds", BRANCHES)
        resolved = {name: thresholds[name] for name in BRANCHES}
    else:
        resolved = dict.fromkeys(BRANCHES, thresholds)
    for name, value in resolved.items():
        _check_threshold(value, name)
    return resolved


ZOO = (
    (
        DualSkippingConfig(
            "dsn-navon", 6, (3, 3, 3, 3), bottleneck=False, guide=False, classes=(10, 10), in_channels=1, image_size=64
        ),
        "sb-MNIST",
    ),
    (DualSkippingConfig("concat-40", 12, (12, 12, 12), bottleneck=False), "CIFAR-100"),
    (DualSkippingConfig("concat-bc-100", 12, (16, 16, 16), bottleneck=True, compression=0.5), "CIFAR-100"),
    (
        DualSkippingConfig("add-166", 32, (18, 18, 18), bottleneck=True, merge="add", stage_widths=(64, 128, 256)),
        "CIFAR-100",
    ),
    (
        DualSkippingConfig(
            "dsn-121", 32, (6, 12, 24, 16), bottleneck=True, compression=0.5, classes=(39, 200), image_size=224,
            stem="imagenet",
        ),
        "CUB-200-2011",
    ),
)  # fmt: skip
