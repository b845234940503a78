"""The twin of a part of a network, on any backend: a plan from a map to a map, or to a head's logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsn_models.densenet import DenseBlock, Head, Transition
from dsn_models.dual_skipping import SkipDenseBlock
from dsn_models.errors import UserError
from dsn_models.gradually_updated import GradualLayer
from dsn_models.inception import Branches
from dsn_models.resnet import BasicUnit, BottleneckUnit, ResidualBottleneck, ResidualUnit
from dsn_models.shake_shake import ShakeUnit
from dsn_models.skipnet import RecurrentGate

from .canonical import canonical
from .gpu import check_forced, check_threshold
from .gradual_planning import GradualPlanner
from .inception_planning import InceptionPlanner
from .network import CPU, Target
from .packing import block_width, pack_dense_block, pack_transition
from .plan_builder import PlanBuilder
from .plan_runner import make_runner
from .residual_planning import ResidualPlanner
from .shake_planning import ShakePlanner

_SIDE = 64  # a plan is made for maps of this side and adapts to others
_THRESHOLD = 0.5  # unless a call gives another


@dataclass(frozen=True)
class ResidualUnits:
    """Residual units of which some are gated, as in `dsn_models.SkipNet`; a bypassed unit costs its gate alone.

    With F a unit's residual, S its shortcut, ReLU absent behind pre-activation units, and g = 1(score > threshold):
    ``y = g ReLU(S(x) + F(x)) + (1 - g) S(x)``. SkipNet, equation 1 and section 2.

    Attributes:
        units: `BasicUnit`, `BottleneckUnit` or `ResidualBottleneck`, one after the other.
        gates: L modules for the last L units: linear maps to 10 with ``control``, else `FeedForwardGate`.
        control: the recurrent gate that they share, if they are recurrent.
    """

    units: Sequence[ResidualUnit]
    gates: Sequence[nn.Module] = ()
    control: RecurrentGate | None = None


@dataclass(frozen=True)
class ChosenConv2d:
    """BN-ReLU, convolution, BN, ReLU, all but the convolution optional, of the filters and channels that masks choose.

    ``filters * conv2d(channels * x)``, GaterNet, equation 4: a filter that is off costs no MACs, nor does a channel
    that is off; with a BN-ReLU in front such a channel is the constant relu(shift), which is added for what it is. The
    masks of O filters and C channels, in this order, are the stage's forced gates uint8 [B, O + C].

    Attributes:
        conv: of one group, without dilation.
        norm: the batch norm behind it.
        relu: a ReLU behind that.
        before: the batch norm of a BN-ReLU in front of it.
    """

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None = None
    relu: bool = False
    before: nn.BatchNorm2d | None = None


class Stage(nn.Module):
    """A part of a network that runs as a plan: same call and outputs as the reference's in ``eval()``.

    ``forward(x, threshold=0.5, forced=None)``: x float32 [B, C, H, W], on a GPU also of the target's dtype, to y, a map
    of x's dtype, or logits float32 [B, classes] of a head. Where the reference's layers or units are gated, to y, the
    gates taken uint8 [B, L] and their scores float32 [B, L]; forced uint8 [B, L] of 0 and 1 is in place of the
    decisions. What a call did is in ``last_gates``, ``last_scores`` and ``last_macs``.

    Args:
        part: of one of :data:`STAGES`, or of a subclass, or a :class:`ResidualUnits` or :class:`ChosenConv2d`.
        target: what it runs on; on the CPU in float32.

    Raises:
        UserError: the part computes something else than its class, or is not served. From a call: x is no batch of
            maps or too small, the threshold is not in [0, 1], or forced gates hold anything but 0 and 1.
        RuntimeError: an argument of a call has the wrong device, dtype or shape; the message names it.
    """

    limits: Tensor

    def __init__(self, part: Any, target: Target = CPU) -> None:
        super().__init__()
        if target.backend == "cpu" and target.dtype != torch.float32:
            raise UserError(f"dtype is {target.dtype}; parts of a network are served in torch.float32 on the CPU")
        if not isinstance(part, (ResidualUnits, ChosenConv2d)):
            part = canonical(part)
        builder, y = _PLANNERS[type(part)](part, target)
        if y is not None:
            builder.plan.add("store", src=y, in_channels=builder.channels(y))
        self.stores = y is not None
        self.gated = isinstance(part, SkipDenseBlock) or (isinstance(part, ResidualUnits) and len(part.gates) > 0)
        plan, weights = builder.result()
        self.register_buffer("limits", torch.full((plan.gates,), _THRESHOLD, dtype=torch.float32), persistent=False)
        self.runner = make_runner(plan, weights, target.dtype, target.backend)
        # Gates, scores and MACs of the last call.
        none = torch.empty(0, plan.gates, dtype=torch.float32)
        self._last = (none.byte(), none, torch.empty(0, dtype=torch.int64))
        self.eval()

    def forward(
        self, x: Tensor, threshold: float = _THRESHOLD, forced: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if x.dim() != 4:
            raise UserError(f"x has shape {list(x.shape)}; expected a batch of maps, [B, C, H, W]")
        if forced is not None:
            check_forced(forced)
        limits = self.limits
        if threshold != _THRESHOLD:
            limits = torch.full_like(limits, check_threshold(threshold))
        out = self.runner.at(*x.shape[2:])(x, limits, forced)
        if not torch.compiler.is_exporting():  # an exported program returns the outputs alone
            self._last = (out.gates, out.scores, out.macs)
        y = out.map if self.stores else out.logits
        return (y, out.gates, out.scores) if self.gated else y

    @property
    def last_gates(self) -> Tensor:
        """What each gate did in the last call, uint8 [B, L]: 1 = open."""
        return self._last[0]

    @property
    def last_scores(self) -> Tensor:
        """The gates' scores in the last call, float32 [B, L]."""
        return self._last[1]

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates of the last call, counted by the kernels while they ran, int64 [B]."""
        return self._last[2]


# A plan without its end, and the buffer that it leaves; None for logits.
_Planned = tuple[PlanBuilder, int | None]


def _residual_unit(unit: Any, target: Target) -> _Planned:
    planner = ResidualPlanner(any_size=True)
    return planner, planner.plan_unit("unit", unit, planner.load(_unit_channels(unit), _SIDE))


def _unit_channels(unit: Any) -> int:
    first: Any = unit.residual if isinstance(unit, ResidualBottleneck) else unit
    return first.conv1.in_channels


def _residual_units(part: ResidualUnits, target: Target) -> _Planned:
    units = [canonical(unit, f"units.{i}") for i, unit in enumerate(part.units)]
    gates = [canonical(gate, f"gates.{i}") for i, gate in enumerate(part.gates)]
    control = None if part.control is None else canonical(part.control, "control")
    planner = ResidualPlanner(any_size=True)
    x = planner.load(_unit_channels(units[0]), _SIDE)
    return planner, planner.plan_units(units, gates, control, x, first_gated=len(units) - len(gates))


def _chosen_conv2d(part: ChosenConv2d, target: Target) -> _Planned:
    conv = canonical(part.conv, "conv")
    norm = None if part.norm is None else canonical(part.norm, "norm")
    before = None if part.before is None else canonical(part.before, "before")
    builder = PlanBuilder({"conv": 0}, any_size=True)
    x = builder.load(conv.in_channels, _SIDE, mask=conv.out_channels)
    image = torch.empty(1, conv.in_channels, _SIDE, _SIDE, dtype=conv.weight.dtype, device="meta")
    y = builder.buffer(*copy.deepcopy(conv).to("meta")(image)[0].shape)
    flags = ("relu",) if part.relu else ()
    return builder, builder.conv(conv, norm, x, y, *flags, path="conv", before=before)


def _shake_unit(unit: ShakeUnit, target: Target) -> _Planned:
    planner = ShakePlanner(any_size=True)
    return planner, planner.plan_unit("unit", unit, planner.load(unit.branch1.conv1.in_channels, _SIDE))


def _branches(module: Branches, target: Target) -> _Planned:
    planner = InceptionPlanner(any_size=True)
    return planner, planner.plan_module("branches", module, planner.load(module.in_channels, _SIDE))


def _gradual_layer(layer: GradualLayer, target: Target) -> _Planned:
    planner = GradualPlanner(in_groups=target.backend == "cpu", any_size=True)
    return planner, planner.plan_layer(layer, planner.load(sum(layer.sizes), _SIDE))


def _dense_block(block: DenseBlock | SkipDenseBlock, target: Target) -> _Planned:
    builder = PlanBuilder(any_size=True)
    fields = pack_dense_block(builder.packer, block)
    x = builder.buffer(block_width(block), _SIDE)
    builder.plan.add("load", dst=x, in_channels=fields["in_channels"])
    builder.plan.add("dense_block", dst=x, **fields)
    return builder, x


def _transition(module: Transition, target: Target) -> _Planned:
    builder, channels, filters = PlanBuilder(any_size=True), module.conv.in_channels, module.conv.out_channels
    x, y = builder.load(channels, _SIDE), builder.buffer(filters, _SIDE // 2)
    weights = pack_transition(builder.packer, module, [])
    builder.plan.add("transition", src=x, dst=y, in_channels=channels, out_channels=filters, weights=weights)
    return builder, y


def _head(module: Head, target: Target) -> _Planned:
    builder = PlanBuilder(any_size=True)
    builder.head(builder.load(module.classifier.in_features, _SIDE), module)
    return builder, None


_PLANNERS: dict[type, Callable[[Any, Target], _Planned]] = {
    BasicUnit: _residual_unit,
    BottleneckUnit: _residual_unit,
    ResidualBottleneck: _residual_unit,
    ShakeUnit: _shake_unit,
    Branches: _branches,
    GradualLayer: _gradual_layer,
    DenseBlock: _dense_block,
    SkipDenseBlock: _dense_block,
    Transition: _transition,
    Head: _head,
    ResidualUnits: _residual_units,
    ChosenConv2d: _chosen_conv2d,
}
STAGES = tuple(kind for kind in _PLANNERS if issubclass(kind, nn.Module))
