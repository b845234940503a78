"""Gradually Updated Neural Networks (Qiao et al., ICML 2018, https://arxiv.org/abs/1711.09280).

A layer's channels are updated segment by segment, each segment reading those already updated: GUNN. Updated at once,
all from the old values, the same weights are a simultaneously updated network: SUNN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .densenet import StemKind, check_images, init_weights, make_stem
from .described import Described
from .errors import UserError

Order = Literal["gradual", "simultaneous"]


class UpdateUnit(nn.Module):
    """G: what is added to a segment of o channels, computed from all N. Section 5.1, "Bottleneck Update Units".

    1x1(N to Ko)-BN-ReLU-3x3(Ko)-BN-ReLU-1x1(Ko to o)-BN, no ReLU after. With ``shortcut``, 1x1(N to o)-BN of the input
    is added; the parameter counts of the paper's CIFAR models require it and the authors' released code (GunnLayer.lua
    of joe-siyuan-qiao/GUNN) has it, no table shows it. Further units (M > 1) read o channels and add their input, as
    bottlenecks of residual networks do: our reading of "stacking up".

    [B, N, H, W] to [B, o, H, W].
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, units: int, shortcut: bool) -> None:
        super().__init__()
        bodies = []
        for m in range(units):
            source, width = (in_channels if m == 0 else out_channels), expansion * out_channels
            bodies.append(
                nn.Sequential(
                    nn.Conv2d(source, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                    nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
                    nn.Conv2d(width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels),
                )
            )  # fmt: skip
        self.bodies = nn.ModuleList(bodies)
        self.shortcut = None
        if shortcut:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bodies[0](x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        for body in list(self.bodies)[1:]:
            y = y + body(y)
        return y


class GradualLayer(nn.Module):
    """Updates N channels segment by segment. Equation 4 of the paper, with the residual form of equation 5.

    For each segment c_i in order: ``x[c_i] = G_i(x) + x[c_i]``, where G_i reads all channels as they are then. With
    ``order="simultaneous"`` every G_i reads the channels as they came (SUNN). Without ``residual``, ``x[c_i] = G_i(x)``
    (NoRes, table 5). [B, N, H, W] to the same shape.

    Args:
        sizes: channels of each segment; they lie one after another and sum to N.
        expansion, units, shortcut: of each :class:`UpdateUnit`.
        order: "gradual" or "simultaneous".
        recompute: train by Algorithm 1 of the paper: the forward pass keeps the layer's input and output, the backward
            pass computes each segment anew. Else autograd keeps all that each segment computed and a copy of all
            channels per segment. Gradual order only.
        residual: add a segment to what takes its place.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        expansion: int,
        units: int,
        shortcut: bool,
        order: Order,
        recompute: bool,
        residual: bool = True,
    ) -> None:
        super().__init__()
        channels = sum(sizes)
        self.sizes, self.order, self.recompute, self.residual = tuple(sizes), order, recompute, residual
        self.units = nn.ModuleList(UpdateUnit(channels, size, expansion, units, shortcut) for size in sizes)

    def segments(self) -> Iterator[tuple[slice, nn.Module]]:
        """(channels, unit) of each segment, in order."""
        first = 0
        for size, unit in zip(self.sizes, self.units, strict=True):
            yield slice(first, first + size), unit
            first += size

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "simultaneous":
            updates = torch.cat([unit(x) for unit in self.units], 1)
            return x + updates if self.residual else updates
        if not torch.is_grad_enabled():
            return self.updated(x)
        if self.recompute:
            return _Recompute.apply(x, self, *self.parameters())
        for channels, unit in self.segments():
            before, own, after = x[:, : channels.start], x[:, channels], x[:, channels.stop :]
            x = torch.cat([before, own + unit(x) if self.residual else unit(x), after], 1)
        return x

    def updated(self, x: Tensor) -> Tensor:
        """``x`` with its segments updated one after another; without gradients."""
        y = x.clone()
        for channels, unit in self.segments():
            update = unit(y)
            y[:, channels] = y[:, channels] + update if self.residual else update
        return y


@contextmanager
def _running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms normalise as before, but do not count the same batch into their running statistics again."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class _Recompute(torch.autograd.Function):
    """Algorithm 1 of the paper: back-propagation through a gradual layer in the memory of one segment.

    From the last segment to the first: put the segment's old values back, compute its unit again, and add its gradient
    to that of all channels (equation 6, the last two steps merged).
    """

    @staticmethod
    def forward(ctx, x: Tensor, layer: GradualLayer, *parameters: Tensor) -> Tensor:
        y = layer.updated(x)
        ctx.layer = layer
        ctx.training = layer.training
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        layer: GradualLayer = ctx.layer
        gradients: dict[int, Tensor] = {}
        if layer.training != ctx.training:
            raise RuntimeError("a gradual layer changed between train() and eval() before its backward pass")
        state, grad = y.detach().clone(), grad.clone()
        for channels, unit in reversed(list(layer.segments())):
            state[:, channels] = x[:, channels]
            source = state.detach().requires_grad_()
            learned = [p for p in unit.parameters() if p.requires_grad]
            with torch.enable_grad(), _running_statistics_kept(unit):
                update = unit(source)
            found = torch.autograd.grad(update, [source, *learned], grad[:, channels])
            if not layer.residual:
                grad[:, channels] = 0
            grad += found[0]
            gradients |= dict(zip(map(id, learned), found[1:], strict=True))
        return grad, None, *(gradients.get(id(p)) for p in layer.parameters())


@dataclass(frozen=True)
class GraduallyUpdatedConfig:
    """What :class:`GraduallyUpdatedNetwork` is built from.

    Attributes:
        name: zoo name.
        widths: N, channels of each gradual layer.
        segments: of each layer, P (even segments) or the sizes of its segments.
        expansion: K, inner channels of an update unit per channel of its segment.
        units: M, bottlenecks stacked in an update unit.
        shortcut: the update units' 1x1 shortcut.
        classes: of the task.
        order: "gradual" (GUNN) or "simultaneous" (SUNN).
        stem: "conv3x3" (CIFAR) or "imagenet"; it decides where transitions pool and whether a 1x1 precedes the head.
        in_channels, image_size: images are [B, in_channels, image_size, image_size].
        recompute: train gradual layers in the memory of one segment.
        residual: a segment is added to its update; False is the paper's NoRes, whose update units keep their shortcut,
            as its parameter count in table 5 requires.

    Raises:
        UserError: a field has a value outside the above.
    """

    name: str
    widths: tuple[int, ...]
    segments: tuple[int | tuple[int, ...], ...]
    expansion: int
    units: int
    shortcut: bool
    classes: int
    order: Order = "gradual"
    stem: StemKind = "conv3x3"
    in_channels: int = 3
    image_size: int = 32
    recompute: bool = True
    residual: bool = True

    def __post_init__(self) -> None:
        nested = tuple(tuple(s) if isinstance(s, (list, tuple)) else s for s in self.segments)
        object.__setattr__(self, "segments", nested)  # a checkpoint's configuration brings lists
        for field, allowed in (("order", Order), ("stem", StemKind)):
            if getattr(self, field) not in get_args(allowed):
                raise UserError(f"{field} is {getattr(self, field)!r}; expected one of {', '.join(get_args(allowed))}")
        if not self.widths or len(self.segments) != len(self.widths):
            raise UserError(f"segments is {self.segments}; expected one entry for each of the widths {self.widths}")
        if min(self.expansion, self.units, self.classes, self.in_channels, self.image_size) < 1:
            raise UserError("expansion, units, classes, in_channels and image_size must be positive")
        for layer, width in enumerate(self.widths):
            sizes = self.sizes(layer)
            if not sizes or min(sizes) < 1 or sum(sizes) != width:
                raise UserError(
                    f"segments[{layer}] is {self.segments[layer]}; expected a number that divides {width}, or sizes "
                    f"that sum to {width}"
                )

    def sizes(self, layer: int) -> tuple[int, ...]:
        """Channels of each segment of a layer."""
        segments, width = self.segments[layer], self.widths[layer]
        if isinstance(segments, tuple):
            return segments
        return (width // segments,) * segments if segments > 0 else ()


def _conv1x1(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class GraduallyUpdatedNetwork(Described, nn.Module):
    """GUNN or SUNN: stem, gradual layers with transitions between, head. Tables 1 and 2 of the paper.

    CIFAR: 3x3(64)-BN-ReLU, 1x1-BN-ReLU to the first width; transitions are 1x1-BN-ReLU-average pool; another
    1x1-BN-ReLU before global pooling and the linear classifier. ImageNet: 7x7/2(64)-BN-ReLU-max-pool, 1x1-BN-ReLU;
    transitions pool first, as in the authors' released gunn-18.lua, not as in table 2; no 1x1 before the head.
    ``forward``: images [B, in_channels, image_size, image_size] to logits [B, classes].

    Raises:
        UserError: the images do not fit.
    """

    def __init__(self, config: GraduallyUpdatedConfig) -> None:
        super().__init__()
        self.config = config
        imagenet, stem_width = config.stem == "imagenet", 64
        stem = [make_stem(config.stem, config.in_channels, stem_width)]
        if not imagenet:
            stem += [nn.BatchNorm2d(stem_width), nn.ReLU(inplace=True)]
        self.stem = nn.Sequential(*stem, *_conv1x1(stem_width, config.widths[0]))
        self.layers, self.transitions = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(config.widths):
            if i > 0:
                convolution = _conv1x1(config.widths[i - 1], width)
                convolution.insert(0 if imagenet else len(convolution), nn.AvgPool2d(2))
                self.transitions.append(nn.Sequential(*convolution))
            how = (config.expansion, config.units, config.shortcut, config.order, config.recompute, config.residual)
            self.layers.append(GradualLayer(config.sizes(i), *how))
        width = config.widths[-1]
        self.last = nn.Sequential() if imagenet else nn.Sequential(*_conv1x1(width, width))
        self.classifier = nn.Linear(width, config.classes)
        init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.config.in_channels, self.config.image_size, next(self.parameters()).dtype)
        x = self.layers[0](self.stem(images))
        for transition, layer in zip(self.transitions, list(self.layers)[1:], strict=True):
            x = layer(transition(x))
        return self.classifier(self.last(x).mean((2, 3)))


def _zoo() -> Iterator[tuple[GraduallyUpdatedConfig, str]]:
    imagenet: dict[str, Any] = {"expansion": 2, "units": 1, "shortcut": False, "classes": 1000}
    imagenet |= {"stem": "imagenet", "image_size": 224}
    orders: tuple[tuple[str, Order], ...] = (("gunn", "gradual"), ("sunn", "simultaneous"))
    for prefix, order in orders:
        yield GraduallyUpdatedConfig(
            f"{prefix}-15", (240, 300, 360), (20, 25, 30), 2, 1, True, 10, order=order
        ), "CIFAR-10"  # fmt: skip
        yield GraduallyUpdatedConfig(
            f"{prefix}-24", (720, 900, 1080), (20, 25, 30), 3, 2, True, 10, order=order
        ), "CIFAR-10"  # fmt: skip
        for name, widths, segments in (
            ("18", (400, 800, 1600, 2000), (10, 20, 40, 50)),
            ("18-wide", (1200, 1600, 2000, 2000), (30, 40, 50, 50)),
        ):
            yield GraduallyUpdatedConfig(f"{prefix}-{name}", widths, segments, order=order, **imagenet), "ImageNet"


ZOO = tuple(_zoo())
