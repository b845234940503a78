"""A Shake-Shake network, with or without chosen filters, as a plan of the native runtime."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from dsn_models.densenet import Head
from dsn_models.shake_shake import ShakeBranch, ShakeShake, ShakeShortcut, ShakeUnit

from ..ops.network import Plan
from .packing import fold, folded_conv, pack_folded
from .plan_builder import Masks, PlanBuilder

_RELU = nn.ReLU()


def plan_shake(model: ShakeShake, side: int, masks: Masks | None = None, bfloat16: bool = False) -> tuple[Plan, Tensor]:
    """The plan of ``model`` and the packed weights it names, float32.

    In evaluation a unit adds the mean of its two branches, so each branch's last batch norm is folded in halved.

    Args:
        model: the reference network.
        side: of the images.
        masks: path of a convolution to the first of the gates that choose its filters.
        bfloat16: of the convolutions' products, on the CPU.
    """
    planner = ShakePlanner(masks, bfloat16=bfloat16)
    x = planner.load(model.config.in_channels, side)
    stem: Any = model.stem
    x = planner.conv(stem[0], stem[1], x, None)
    for i, unit in enumerate(model.units):
        assert isinstance(unit, ShakeUnit)
        x = planner.plan_unit(f"units.{i}", unit, x)
    classifier: Any = model.head[-1]
    head = Head(planner.channels(x), classifier.out_features)
    head.norm.eps, head.classifier = 0.0, classifier  # a fresh norm without it leaves the ReLU alone
    planner.head(x, head)
    return planner.result()


class ShakePlanner(PlanBuilder):
    """Appends units to a plan."""

    def plan_unit(self, path: str, unit: ShakeUnit, x: int) -> int:
        stride = unit.branch1.conv1.stride[0]
        side = -(-self.side(x) // stride)
        branches: list[ShakeBranch] = [unit.branch1, unit.branch2]
        inner = []
        for i, branch in enumerate(branches):  # both read x, which the sum may overwrite
            dst = self.scratch(branch.conv1.out_channels, side, i)
            where = f"{path}.branch{i + 1}.conv1"
            inner.append(self.conv(branch.conv1, branch.norm1, x, dst, "relu", path=where, before=_RELU))
        y = self._plan_shortcut(unit.shortcut, x, side) if isinstance(unit.shortcut, ShakeShortcut) else x
        for i, branch in enumerate(branches):
            half = copy.deepcopy(branch.norm2)
            half.weight.data *= 0.5
            half.bias.data *= 0.5
            self.conv(branch.conv2, half, inner[i], y, "accumulate", path=f"{path}.branch{i + 1}.conv2")
        return y

    def _plan_shortcut(self, shortcut: ShakeShortcut, x: int, side: int) -> int:
        """Each half reads every stride-th pixel, the second one pixel further on: a 1x1 that passes over the first."""
        y = self.buffer(shortcut.norm.num_features, side)
        scale, shift = fold(shortcut.norm)
        offset = 0
        for conv, skip in ((shortcut.conv1, 0), (shortcut.conv2, 1)):
            weight, _ = folded_conv(conv, None)
            rows = slice(offset, offset + len(weight))
            packed = pack_folded(self.packer, weight * scale[rows, None, None, None], shift[rows], _RELU)
            sampling = {"stride": shortcut.stride, "columns": 1, "pad_rows": -skip, "pad_columns": -skip}
            self.packed_conv(packed, x, y, normalise=True, out_offset=offset, **sampling)
            offset = rows.stop
        return y
