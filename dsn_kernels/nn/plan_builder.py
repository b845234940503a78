"""What every planner needs: buffers, packed weights, and which channels of a buffer may hold no data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dsn_models.densenet import Head

from .. import _C
from ..costs import costs
from ..ops.network import Plan
from .packing import Packer, pack_conv2d, pack_head, pack_linear

# Path of a convolution, or of a concatenation, to the first of the gates that choose its filters or channels.
Masks = Mapping[str, int]


class PlanBuilder:
    """A plan as it grows, and the packed weights it names.

    ``slices`` says, for each buffer, which channels may hold no data; who reads it is told.

    Args:
        masks: what chooses filters.
        any_size: the plan will run on maps of other sizes too.
        bfloat16: convolutions multiply pairs of bfloat16 and sum in float32, on the CPU; all else is float32.
    """

    def __init__(self, masks: Masks | None = None, any_size: bool = False, bfloat16: bool = False) -> None:
        self.plan, self.packer, self.masks, self.any_size = Plan(), Packer(bfloat16), masks or {}, any_size
        self.slices: dict[int, list[range]] = {}
        self._mask_of: dict[int, int] = {}  # of buffers that one convolution wrote
        self._scratch: dict[tuple[int, ...], int] = {}
        costs()  # by these the CPU kernels take samples side by side

    def result(self) -> tuple[Plan, Tensor]:
        return self.plan, self.packer.tensor()

    def buffer(self, channels: int, height: int, width: int | None = None) -> int:
        return self.plan.buffer(channels, height, height if width is None else width)

    def scratch(self, channels: int, height: int, index: int = 0) -> int:
        """A buffer that lives within a unit; units of one shape share it."""
        key = (channels, height, index)
        if key not in self._scratch:
            self._scratch[key] = self.buffer(channels, height)
        return self._scratch[key]

    def channels(self, buffer: int) -> int:
        return self.plan.buffers[buffer][0]

    def side(self, buffer: int) -> int:
        return self.plan.buffers[buffer][1]

    def load(self, channels: int, side: int, mask: int = -1) -> int:
        """A buffer with the image that enters the plan; ``mask``: first of the gates that choose its channels."""
        image = self.buffer(channels, side)
        self.plan.add("load", dst=image, in_channels=channels, out_mask=mask)
        self.written(image, 0, channels, mask >= 0)
        return image

    def conv(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None,
        src: int,
        dst: int | None,
        *flags: str,
        path: str = "",
        before: nn.Module | None = None,
        exact: bool = False,
        **fields: int,
    ) -> int:
        """Appends a convolution, by default into a new buffer of src's size; returns its destination.

        Args:
            conv, norm: the convolution and the batch norm behind it, if any.
            path: under which a mask may choose its filters.
            before: the batch norm of a BN-ReLU in front, or a ReLU alone.
            exact: in float32 even if the plan is in bfloat16.
            fields: others of the instruction.
        """
        slices = self.slices.get(src, [])
        out_mask = self.masks.get(path, -1)
        dst = self.buffer(conv.out_channels, self.side(src)) if dst is None else dst
        plain = before is None and not slices and (exact or not self.packer.bfloat16)
        winograd = plain and out_mask < 0 and self._winograd_pays(conv, dst)
        packed = pack_conv2d(self.packer, conv, norm, before, out_mask >= 0, winograd, slices, exact)
        names = (*flags, "winograd") if winograd else flags
        return self.packed_conv(packed, src, dst, *names, normalise=before is not None, out_mask=out_mask, **fields)

    def _winograd_pays(self, conv: nn.Conv2d, dst: int) -> bool:
        if self.any_size or (conv.kernel_size, conv.stride, conv.padding) != ((3, 3), (1, 1), (1, 1)):
            return False
        return _C.winograd_pays(conv.in_channels, conv.out_channels, *self.plan.buffers[dst][1:])

    def packed_conv(
        self, packed: Mapping[str, int], src: int, dst: int, *flags: str, normalise: bool = False, **fields: int
    ) -> int:
        """As :meth:`conv`, for weights that are packed already."""
        names = {*flags, *(("normalise",) if normalise else ()), *(("live",) if self.slices.get(src) else ())}
        in_mask = self._mask_of.get(src, -1)
        bits = packed.get("flags", 0) + sum(_C.FLAGS[name] for name in names)
        self.plan.add("conv2d", src=src, dst=dst, in_mask=in_mask, **{**packed, "flags": bits}, **fields)
        if "accumulate" not in names:
            offset, out_mask = fields.get("out_offset", 0), fields.get("out_mask", -1)
            self.written(dst, offset, packed["out_channels"], out_mask >= 0)
            self._mask_of[dst] = out_mask if offset == 0 else -1
        return dst

    def written(self, buffer: int, offset: int, channels: int, skippable: bool) -> None:
        """``channels`` behind the first ``offset`` of a buffer are new; ``skippable``: each may hold no data."""
        kept = self.slices.get(buffer, []) if offset else []
        new = [range(offset + c, offset + c + 1) for c in range(channels)] if skippable else []
        self.slices[buffer] = kept + new
        self._mask_of[buffer] = -1

    def pool(
        self, op: str, src: int, dst: int, size: int, stride: int, padding: int = 0, offset: int = 0, mask: int = -1
    ) -> int:
        """Appends a ``"max_pool"`` or ``"avg_pool"``; pixels outside the map do not count."""
        channels = self.channels(src)
        self.plan.add(
            op,
            src=src,
            dst=dst,
            in_channels=channels,
            taps=size * size,
            columns=size,
            stride=stride,
            pad_rows=padding,
            pad_columns=padding,
            out_offset=offset,
            out_mask=mask,
        )
        self.written(dst, offset, channels, mask >= 0 or bool(self.slices.get(src)))
        return dst

    def head(self, src: int, head: Any, pooled: bool = False, out_offset: int = 0) -> None:
        """Appends the classifier: BN-ReLU-GAP-linear, or, for a sequence, GAP and its last module, which is linear.

        ``pooled``: the instruction before has left the pooled features. ``out_offset``: first of its logits.
        """
        fields = {"src": src, "in_channels": self.channels(src), "out_offset": out_offset}
        if isinstance(head, Head):
            weights = pack_head(self.packer, head, self.slices.get(src, []))
            self.plan.add("head", out_channels=head.classifier.out_features, weights=weights, **fields)
            return
        if not pooled:
            self.plan.add("pool_sums", src=src, in_channels=self.channels(src))
        self.plan.add(
            "linear", out_channels=head[-1].out_features, weights=pack_linear(self.packer, head[-1]), **fields
        )
