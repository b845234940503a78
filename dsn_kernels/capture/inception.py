"""Inception-v4, with or without chosen filters, as a graph."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsn_models.errors import UserError
from dsn_models.inception import Branches, ConvNorm, InceptionV4

from ..graph import Graph
from .builder import PART_SIDE, GraphBuilder, Masks
from .folding import window_of
from .registry import FAMILIES, Family, flat


def capture_inception(model: InceptionV4, side: int, masks: Masks | None = None) -> Graph:
    """The graph of ``model``; a branch ends by writing its channels where the concatenation has them.

    Args:
        model: the reference network.
        side: of the images.
        masks: path of a convolution, or of a concatenation, to the first of the gates of its filters or channels.
    """
    builder = InceptionBuilder(masks)
    x = builder.load(model.config.in_channels, side)
    for part in ("stem", "units"):
        for i, module in enumerate(model.get_submodule(part).children()):
            x = builder.add_part(f"{part}.{i}", module, x)
    builder.head(x, model.head)
    return builder


class InceptionBuilder(GraphBuilder):
    """Adds concatenations of branches to a graph."""

    def add_part(self, path: str, module: nn.Module, x: int) -> int:
        """A part of the trunk; the parts' outputs take turns in two maps of a shape."""
        out_channels = module.conv.out_channels if isinstance(module, ConvNorm) else _width(module)
        side = _side(_first_path(module), self.side(x))
        index = next(i for i in (0, 1) if self.scratch(out_channels, side, i) != x)
        y = self.scratch(out_channels, side, index)
        self._add_into(path, module, x, y, 0)
        return y

    def _add_into(self, path: str, module: nn.Module, x: int, dst: int, offset: int, mask: int = -1) -> None:
        """``module`` of x into ``dst`` behind its first ``offset``; ``mask``: first gate of a pool's channels."""
        if isinstance(module, ConvNorm):
            self.conv(module.conv, module.norm, x, dst, activation="relu", path=f"{path}.conv", out_offset=offset)
        elif isinstance(module, nn.Sequential):
            parts = list(module)
            for i, part in enumerate(parts[:-1]):
                x = self._add_inner(f"{path}.{i}", part, x, i)
            self._add_into(f"{path}.{len(parts) - 1}", parts[-1], x, dst, offset, mask)
        elif isinstance(module, Branches):
            first, start = self.masks.get(path, mask), offset
            for i, branch in enumerate(module.branches):
                own = first + offset - start if first >= 0 else -1
                self._add_into(f"{path}.branches.{i}", branch, x, dst, offset, own)
                offset += _width(branch, self.channels(x))
        else:
            self.pool(module, x, dst, out_offset=offset, out_mask=mask)

    def _add_inner(self, path: str, module: Any, x: int, depth: int) -> int:
        """A step within a branch. Depths alternate, so that a step never writes what it reads."""
        channels = _width(module, self.channels(x))
        y = self.scratch(channels, _side([module], self.side(x)), 2 + depth % 2)
        self._add_into(path, module, x, y, 0)
        return y


def _width(module: nn.Module, in_channels: int = 0) -> int:
    """Channels of a module's output; a pool keeps those of its input."""
    if isinstance(module, ConvNorm):
        return module.conv.out_channels
    if isinstance(module, nn.Sequential):
        return _width(module[-1], in_channels)
    return sum(channels for _, channels in module.parts()) if isinstance(module, Branches) else in_channels


def _first_path(module: nn.Module) -> list[Any]:
    """Convolutions and pools from a module's input to its output, by its first branch."""
    if isinstance(module, nn.Sequential):
        return [step for part in module for step in _first_path(part)]
    return _first_path(module.branches[0]) if isinstance(module, Branches) else [module]


def _side(steps: list[Any], side: int) -> int:
    """Side of the map that ``steps`` leave of one of ``side``."""
    for step in steps:
        side, _ = window_of(step.conv if isinstance(step, ConvNorm) else step).output_size(side, side)
    return side


def _capture_branches(module: Branches) -> Graph:
    builder = InceptionBuilder()
    return builder.stored_at(builder.add_part("branches", module, builder.load(module.in_channels, PART_SIDE)))


def _network(model: Any) -> nn.Module:
    """Whatever is in its stem and units, which a graph takes as they are arranged."""
    fresh: Any = InceptionV4(model.config)
    fresh.stem, fresh.units = _part(model.stem), _part(model.units)
    last: Any = [module for _, module in flat(model.head)][-1]
    fresh.head[-1] = nn.Linear(last.in_features, model.config.classes)
    return fresh


def _part(module: Any) -> nn.Module:
    """Branches, and what they are made of, whatever their arrangement."""
    if isinstance(module, Branches):
        return Branches(module.in_channels, *map(_part, module.branches))
    if isinstance(module, ConvNorm):
        conv: Any = module.conv
        return ConvNorm(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride[0], not any(conv.padding))
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(_part(m) for _, m in flat(module)))
    if isinstance(module, nn.MaxPool2d):
        return nn.MaxPool2d(module.kernel_size, module.stride, module.padding)
    if isinstance(module, nn.AvgPool2d):
        counted = module.count_include_pad and not module.padding  # without padding it says nothing
        return nn.AvgPool2d(module.kernel_size, module.stride, module.padding, count_include_pad=counted)
    raise UserError(f"a {type(module).__name__} in Branches; expected ConvNorm, Branches, a sequence or a pool of them")


FAMILIES |= {
    InceptionV4: Family(_network, capture_inception),
    Branches: Family(_part, part=_capture_branches),
}
