"""A Shake-Shake network, with or without chosen filters, as a graph."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsn_models.densenet import Head
from dsn_models.shake_shake import ShakeShake, ShakeShortcut, ShakeUnit

from ..graph import Graph, Window
from .builder import PART_SIDE, GraphBuilder, Masks
from .folding import fold, folded_conv, relu_alone
from .registry import FAMILIES, Family, from_config

_RELU = nn.ReLU()


def capture_shake(model: ShakeShake, side: int, masks: Masks | None = None) -> Graph:
    """The graph of ``model``.

    In evaluation a unit adds the mean of its two branches, so each branch's last convolution is folded in halved.

    Args:
        model: the reference network.
        side: of the images.
        masks: path of a convolution to the first of the gates that choose its filters.
    """
    builder = ShakeBuilder(masks)
    x = builder.load(model.config.in_channels, side)
    stem: Any = model.stem
    x = builder.conv(stem[0], stem[1], x, None)
    for i, unit in enumerate(model.units):
        assert isinstance(unit, ShakeUnit)
        x = builder.add_unit(f"units.{i}", unit, x)
    classifier: Any = model.head[-1]
    head = Head(builder.channels(x), classifier.out_features)
    head.norm.eps, head.classifier = 0.0, classifier  # a fresh norm without it leaves the ReLU alone
    builder.head(x, head)
    return builder


class ShakeBuilder(GraphBuilder):
    """Adds units to a graph."""

    def add_unit(self, path: str, unit: ShakeUnit, x: int) -> int:
        stride = unit.branch1.conv1.stride[0]
        side = -(-self.side(x) // stride)
        branches: list[Any] = [unit.branch1, unit.branch2]
        inner = []
        for i, branch in enumerate(branches):  # both read x, which the sum may overwrite
            dst = self.scratch(branch.conv1.out_channels, side, i)
            where = f"{path}.branch{i + 1}.conv1"
            inner.append(self.conv(branch.conv1, branch.norm1, x, dst, activation="relu", path=where, before=_RELU))
        y = self._add_shortcut(unit.shortcut, x, side) if isinstance(unit.shortcut, ShakeShortcut) else x
        for i, branch in enumerate(branches):
            weight, bias = folded_conv(branch.conv2, branch.norm2)
            mask = self.masks.get(f"{path}.branch{i + 1}.conv2", -1)
            window = Window(3, 3, 1, 1, 1)
            self.folded_conv(weight / 2, bias / 2, window, inner[i], y, accumulate=True, out_mask=mask)
        return y

    def _add_shortcut(self, shortcut: ShakeShortcut, x: int, side: int) -> int:
        """Each half reads every stride-th pixel, the second one pixel further on: a 1x1 that passes over the first."""
        y = self.map(shortcut.norm.num_features, side)
        scale, shift = fold(shortcut.norm)
        offset = 0
        for conv, skip in ((shortcut.conv1, 0), (shortcut.conv2, 1)):
            weight, _ = folded_conv(conv, None)
            rows = slice(offset, offset + len(weight))
            window = Window(1, 1, shortcut.stride, -skip, -skip)
            before = relu_alone(weight.shape[1])
            weight = weight * scale[rows, None, None, None]
            self.folded_conv(weight, shift[rows], window, x, y, before=before, out_offset=offset)
            offset = rows.stop
        return y


def _capture_unit(unit: Any) -> Graph:
    builder = ShakeBuilder()
    return builder.stored_at(builder.add_unit("unit", unit, builder.load(unit.branch1.conv1.in_channels, PART_SIDE)))


def _unit(unit: Any) -> nn.Module:
    first, last = unit.branch1.conv1, unit.branch1.conv2
    return ShakeUnit(first.in_channels, last.out_channels, first.stride[0])


FAMILIES |= {
    ShakeShake: Family(from_config, capture_shake),
    ShakeUnit: Family(_unit, part=_capture_unit),
}
