"""What every family's capture needs: maps, folded weights, and regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dsn_models.densenet import Head as ReferenceHead

from ..graph import AvgPool, Conv2d, Graph, Head, Linear, Load, MaxPool, PoolSums, Store, Window
from .folding import fold, folded_conv, relu_alone, window_of

# Path of a convolution, or of a concatenation, to the first of the gates that choose its filters or channels.
Masks = Mapping[str, int]
# A part of a network is captured on maps of this side and runs on others too.
PART_SIDE = 64


class GraphBuilder(Graph):
    """A graph as it grows.

    Args:
        masks: what chooses filters.
    """

    def __init__(self, masks: Masks | None = None) -> None:
        super().__init__()
        self.masks = masks or {}
        self._scratch: dict[tuple[int, ...], int] = {}

    def scratch(self, channels: int, side: int, index: int = 0) -> int:
        """A map that lives within a unit; units of one shape share it."""
        key = (channels, side, index)
        if key not in self._scratch:
            self._scratch[key] = self.map(channels, side)
        return self._scratch[key]

    def channels(self, map: int) -> int:
        return self.maps[map].channels

    def side(self, map: int) -> int:
        return self.maps[map].height

    def load(self, channels: int, side: int, mask: int = -1) -> int:
        """A map with the image that enters; ``mask``: first of the gates that choose its channels."""
        image = self.map(channels, side)
        self.add(Load(dst=image, in_channels=channels, out_mask=mask))
        return image

    def conv(
        self,
        conv: Any,
        norm: nn.Module | None,
        src: int,
        dst: int | None,
        *,
        path: str = "",
        before: nn.Module | None = None,
        **fields: Any,
    ) -> int:
        """Adds a convolution, by default into a new map of src's size; returns its destination.

        Args:
            conv, norm: the convolution and the batch norm behind it, if any.
            path: under which a mask may choose its filters.
            before: the batch norm of a BN-ReLU in front, or a ReLU alone.
            fields: others of :class:`dsn_kernels.graph.Conv2d`.
        """
        weight, bias = folded_conv(conv, norm)
        norm_before = None
        if before is not None:
            norm_before = fold(before) if isinstance(before, nn.BatchNorm2d) else relu_alone(weight.shape[1])
        mask = self.masks.get(path, -1)
        return self.folded_conv(
            weight, bias, window_of(conv), src, dst, before=norm_before, out_mask=mask, **fields
        )  # fmt: skip

    def folded_conv(
        self, weight: Tensor, bias: Tensor, window: Window, src: int, dst: int | None, **fields: Any
    ) -> int:
        """As :meth:`conv`, for a weight and bias that are folded already."""
        dst = self.map(len(weight), self.side(src)) if dst is None else dst
        sizes: dict[str, Any] = {"in_channels": weight.shape[1], "src": src, "dst": dst}
        self.add(Conv2d(weight=weight, bias=bias, window=window, **sizes, **fields))
        return dst

    def pool(self, module: Any, src: int, dst: int, **fields: Any) -> int:
        """Adds a maximum or average pool."""
        kind = MaxPool if isinstance(module, nn.MaxPool2d) else AvgPool
        self.add(kind(src=src, dst=dst, in_channels=self.channels(src), window=window_of(module), **fields))
        return dst

    def head(self, src: int, head: Any, *, pooled: bool = False, **fields: Any) -> None:
        """Adds the classifier: BN-ReLU-GAP-linear, or, for a sequence, GAP and its last module, which is linear.

        ``pooled``: the node before has left the pooled features.
        """
        common = {"src": src, "in_channels": self.channels(src), "out_offset": self.logits, **fields}
        linear = head.classifier if isinstance(head, ReferenceHead) else head[-1]
        weights: dict[str, Any] = {"weight": linear.weight.detach().double(), "bias": linear.bias.detach().double()}
        if isinstance(head, ReferenceHead):
            self.add(Head(norm=fold(head.norm), **weights, **common))
            return
        if not pooled:
            self.add(PoolSums(src=src, in_channels=self.channels(src)))
        self.add(Linear(**weights, **common))

    def stored_at(self, map: int) -> Graph:
        """The graph, ended by ``map`` as what leaves."""
        self.add(Store(src=map, in_channels=self.channels(map)))
        return self
