"""Parts of networks that no single module is: residual units with their gates, a convolution with chosen filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dsn_models.resnet import ResidualUnit
from dsn_models.skipnet import RecurrentGate

from ..graph import DenseBlock, Gate, Graph
from .builder import PART_SIDE, GraphBuilder
from .canonical import canonical
from .folding import window_of
from .registry import FAMILIES
from .residual import capture_units


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

    def capture(self) -> Graph:
        units = [canonical(unit, f"units.{i}") for i, unit in enumerate(self.units)]
        gates = [canonical(gate, f"gates.{i}") for i, gate in enumerate(self.gates)]
        return capture_units(units, gates, None if self.control is None else canonical(self.control, "control"))


@dataclass(frozen=True)
class ChosenConv2d:
    """BN-ReLU, convolution, BN, ReLU, all but the convolution optional, of the filters and channels that masks choose.

    ``filters * conv2d(channels * x)``, GaterNet, equation 4: a filter that is off costs no MACs, nor does a channel
    that is off; with a BN-ReLU in front such a channel is the constant relu(shift), which is added for what it is. The
    masks of O filters and C channels, in this order, are the part's forced gates uint8 [B, O + C].

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

    def capture(self) -> Graph:
        conv = canonical(self.conv, "conv")
        norm = None if self.norm is None else canonical(self.norm, "norm")
        before = None if self.before is None else canonical(self.before, "before")
        builder = GraphBuilder({"conv": 0})
        x = builder.load(conv.in_channels, PART_SIDE, mask=conv.out_channels)
        y = builder.map(conv.out_channels, *window_of(conv).output_size(PART_SIDE, PART_SIDE))
        return builder.stored_at(
            builder.conv(conv, norm, x, y, activation="relu" if self.relu else "none", path="conv", before=before)
        )


def capture_part(part: Any) -> Graph:
    """The graph of a part of a network: a module of one of :func:`.registry.parts`, or one of the classes above."""
    if isinstance(part, (ResidualUnits, ChosenConv2d)):
        return part.capture()
    part = canonical(part)
    capture = FAMILIES[type(part)].part
    assert capture is not None
    return capture(part)


def decides(graph: Graph) -> bool:
    """Whether a part has gates of its own, whose decisions its reference returns."""
    blocks = [node for node in graph.nodes if isinstance(node, DenseBlock)]
    return any(isinstance(node, Gate) for node in graph.nodes) or any(block.gate != "none" for block in blocks)
