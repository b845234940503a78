"""Twins of parts of a network that lead from one map to another: residual units and stages, gradual layers, others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsn_models.densenet import DenseBlock
from dsn_models.gradually_updated import GradualLayer
from dsn_models.inception import Branches
from dsn_models.resnet import BasicUnit, BottleneckUnit, ResidualBottleneck, ResidualUnit
from dsn_models.shake_shake import ShakeUnit
from dsn_models.skipnet import RecurrentGate

from .. import ops
from .canonical import canonical
from .gradual_planning import GradualPlanner
from .inception_planning import InceptionPlanner
from .packing import block_width, pack_dense_block
from .plan_builder import PlanBuilder
from .residual_planning import ResidualPlanner
from .shake_planning import ShakePlanner

_SIDE = 64  # a plan is made for maps of this side and adapts to others


class Stage(nn.Module):
    """A part of a network without gates. ``forward``: float32 [B, C, H, W] to the reference's output."""

    weights: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        module = canonical(module)
        self._keep(*STAGES[type(module)](module))

    def _keep(self, builder: PlanBuilder, y: int) -> None:
        builder.plan.add("store", src=y, in_channels=builder.channels(y))
        self.plan, weights = builder.result()
        self.register_buffer("weights", weights)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return ops.stage(x, self.weights, self.plan).y


def _residual_unit(unit: Any) -> tuple[PlanBuilder, int]:
    planner = ResidualPlanner(any_size=True)
    return planner, planner.plan_unit("unit", unit, planner.load(_unit_channels(unit), _SIDE))


def _unit_channels(unit: Any) -> int:
    first: Any = unit.residual if isinstance(unit, ResidualBottleneck) else unit
    return first.conv1.in_channels


def _shake_unit(unit: ShakeUnit) -> tuple[PlanBuilder, int]:
    planner = ShakePlanner(any_size=True)
    return planner, planner.plan_unit("unit", unit, planner.load(unit.branch1.conv1.in_channels, _SIDE))


def _branches(module: Branches) -> tuple[PlanBuilder, int]:
    planner = InceptionPlanner(any_size=True)
    return planner, planner.plan_module("branches", module, planner.load(module.in_channels, _SIDE))


def _gradual_layer(layer: GradualLayer) -> tuple[PlanBuilder, int]:
    planner = GradualPlanner(in_groups=True, any_size=True)
    return planner, planner.plan_layer(layer, planner.load(sum(layer.sizes), _SIDE))


def _dense_block(block: DenseBlock) -> tuple[PlanBuilder, int]:
    planner = PlanBuilder(any_size=True)
    fields = pack_dense_block(planner.packer, block)
    x = planner.buffer(block_width(block), _SIDE)
    planner.plan.add("load", dst=x, in_channels=fields["in_channels"])
    planner.plan.add("dense_block", dst=x, **fields)
    return planner, x


STAGES: dict[type[nn.Module], Callable[[Any], tuple[PlanBuilder, int]]] = {
    BasicUnit: _residual_unit,
    BottleneckUnit: _residual_unit,
    ResidualBottleneck: _residual_unit,
    ShakeUnit: _shake_unit,
    Branches: _branches,
    GradualLayer: _gradual_layer,
    DenseBlock: _dense_block,
}


class ResidualStage(Stage):
    """Residual units of which some are gated, as in `dsn_models.SkipNet`; a bypassed unit costs its gate alone.

    ``forward(x, threshold=0.5, forced=None)``: x float32 [B, C, H, W] to the last unit's output, the gates taken uint8
    [B, L] and their scores float32 [B, L]; forced uint8 [B, L] of 0 and 1.

    Args:
        units: `BasicUnit`, `BottleneckUnit` or `ResidualBottleneck`, one after the other.
        gates: L modules for the last L units: linear maps to 10 with ``control``, else `FeedForwardGate`.
        control: the recurrent gate that they share, if they are recurrent.
    """

    def __init__(
        self, units: Sequence[ResidualUnit], gates: Sequence[nn.Module] = (), control: RecurrentGate | None = None
    ) -> None:
        nn.Module.__init__(self)
        units = [canonical(unit, f"units.{i}") for i, unit in enumerate(units)]
        gates = [canonical(gate, f"gates.{i}") for i, gate in enumerate(gates)]
        control = None if control is None else canonical(control, "control")
        planner = ResidualPlanner(any_size=True)
        x = planner.load(_unit_channels(units[0]), _SIDE)
        first_gated = len(units) - len(gates)
        self._keep(planner, planner.plan_units(units, gates, control, x, first_gated))

    def forward(  # type: ignore[override]  # a gated stage also says what its gates did
        self, x: Tensor, threshold: float = 0.5, forced: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        limits = torch.full((self.plan.gates,), float(threshold), dtype=torch.float32)
        y, gates, scores, _ = ops.residual_stage(x, self.weights, self.plan, limits, forced)
        return y, gates, scores


class SelectConv2d(Stage):
    """BN-ReLU, convolution, BN, ReLU, all but the convolution optional, of the filters and channels that masks select.

    ``forward(x, filters=None, channels=None)``: x float32 [B, C, H, W]; filters uint8 [B, O] and channels uint8 [B, C]
    of 0 and 1, all if not given. The output of a filter that is off is zero; a channel that is off is taken for zeros.

    Args:
        conv: of one group, without dilation.
        norm: the batch norm behind it.
        relu: a ReLU behind that.
        before: the batch norm of a BN-ReLU in front of it.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
        relu: bool = False,
        before: nn.BatchNorm2d | None = None,
    ) -> None:
        nn.Module.__init__(self)
        conv = canonical(conv, "conv")
        norm, before = (None if part is None else canonical(part, name) for part, name in
                        ((norm, "norm"), (before, "before")))  # fmt: skip
        self.filters, self.channels = conv.out_channels, conv.in_channels
        builder = PlanBuilder({"conv": 0}, any_size=True)
        x = builder.load(conv.in_channels, _SIDE, mask=conv.out_channels)
        y = builder.buffer(
            *copy.deepcopy(conv)
            .to("meta")(torch.empty(1, conv.in_channels, _SIDE, _SIDE, dtype=conv.weight.dtype, device="meta"))[0]
            .shape
        )
        flags = ("relu",) if relu else ()
        self._keep(builder, builder.conv(conv, norm, x, y, *flags, path="conv", before=before))

    def forward(  # type: ignore[override]  # and its masks
        self, x: Tensor, filters: Tensor | None = None, channels: Tensor | None = None
    ) -> Tensor:
        filters = torch.ones(len(x), self.filters, dtype=torch.uint8) if filters is None else filters
        channels = torch.ones(len(x), self.channels, dtype=torch.uint8) if channels is None else channels
        return ops.select_conv2d(x, self.weights, self.plan, filters, channels)[0]
