"""What a SkipNet computes, counted both ways: in units, as the paper does, and in multiply-accumulates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .skipnet import SkipNet


class UnitMacs(NamedTuple):
    """MACs of one image by part, of convolutions and linear layers.

    Attributes:
        fixed: stem, first unit, projected shortcuts and head, which every image needs.
        gates: int64 [L], each gate with its share of the recurrent one; they decide for every image.
        residuals: int64 [L], the gated units without their shortcuts; only kept ones are needed.
    """

    fixed: int
    gates: Tensor
    residuals: Tensor

    @property
    def dense(self) -> int:
        """MACs of the network without gates."""
        return self.fixed + int(self.residuals.sum())


class Computation(NamedTuple):
    """What images compute, as fractions or counts of the shape of the gates without their last dimension.

    Attributes:
        units: fraction of all units that run, the ungated first one counted; the paper's measure.
        macs: MACs of an image, gates included.
        saved: 1 - macs / MACs of the network without gates.
    """

    units: Tensor
    macs: Tensor
    saved: Tensor


def _run(part: nn.Module, *inputs: object) -> tuple[Tensor, int]:
    """The output of a part and its MACs."""
    with FlopCounterMode(display=False) as counter:
        out = part(*inputs)
    return out, counter.get_total_flops() // 2


@torch.no_grad()
def unit_macs(model: SkipNet) -> UnitMacs:
    """Counts ``model``'s parts for one image of its configuration's size, on the meta device."""
    config = model.config
    with torch.device("meta"):
        network = SkipNet(config).eval()
        image = torch.empty(1, config.in_channels, config.image_size, config.image_size)
    x, fixed = _run(network.stem, image)
    x, first = _run(network.units[0], x)
    fixed += first
    gates, residuals = [], []
    for gate, unit in zip(network.gates, list(network.units)[1:], strict=False):  # the last gate decides nothing
        embedding, macs = _run(gate, x.mean((2, 3)) if config.gate == "rnn" else x)
        if config.gate == "rnn":
            macs += _run(network.control, embedding, None)[1]
        gates.append(macs)
        shortcut = _run(unit.get_submodule("shortcut"), x)[1]
        x, whole = _run(unit, x)
        fixed += shortcut
        residuals.append(whole - shortcut)
    return UnitMacs(fixed + _run(network.head, x)[1], torch.tensor(gates), torch.tensor(residuals))


def computation(model: SkipNet, kept: Tensor) -> Computation:
    """Units and MACs of images whose gates keep ``kept``.

    Args:
        model: its shapes count, its weights do not.
        kept: [..., L], 1 for a unit that runs and 0 for a bypassed one, or the fraction of images that ran it.
    """
    counts, kept = unit_macs(model), kept.double().cpu()
    macs = counts.fixed + counts.gates.sum() + (kept * counts.residuals).sum(-1)
    return Computation((1 + kept.sum(-1)) / (1 + kept.shape[-1]), macs, 1 - macs / counts.dense)
