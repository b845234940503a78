"""A transition: BN-ReLU-average pool-1x1, perhaps with a guide behind its input."""

from __future__ import annotations

from torch import Tensor

from ..graph import Window
from .conv2d import launch_conv2d
from .support import register


@register("preact_conv2d", mutates=["dst", "sums", "macs"])
def preact_conv2d(
    src: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor,
    constants: Tensor | None,
    dst: Tensor,
    sums: Tensor | None,
    macs: Tensor,
    enabled: Tensor | None,
    taken: Tensor | None,
    inputs: Tensor | None,
    input_counts: Tensor | None,
    height: int,
    width: int,
    depth: int,
    filters: int,
    group: int,
    first_channels: int,
    slice_channels: int,
    accumulate: bool,
) -> None:
    """``dst = conv1x1(avg_pool2d(relu(s * src + t), 2)) [+ dst]``; the pool goes first, which is exact.

    Args:
        src: [B, height * width, places].
        norm: float32 [2, places], scale s and shift t.
        weight, bias: [places, columns] of src's dtype, float32 [columns].
        constants: float32 [slices, 1, columns]: what each slice gives that was skipped, by ``taken`` uint8 [B, slices].
        dst: [B, height // 2 * (width // 2), columns], written; sums: float32 [B, units, columns], its channel sums.
        macs: int64 [B], added to.
        enabled: int64 [W], the samples that are real, or None.
        inputs, input_counts: int32 [B, groups] and [B], the groups of channels that hold data, or None for all; with a
            group of 1 channels, then the others.
        depth, filters: channels of src and filters, without padding.
        group, first_channels, slice_channels: of the channels, as :class:`dsn_kernels.triton.layout.Channels` says.
        accumulate: add what dst holds.
    """
    launch_conv2d(
        src,
        weight,
        bias,
        dst,
        macs,
        size=(height, width),
        out_size=(height // 2, width // 2),
        window=Window(1, 1, 2),
        depth=depth,
        filters=filters,
        stored=weight.shape[1],
        norm=norm,
        constants=constants,
        sums=sums,
        words=enabled,
        taken=taken,
        inputs=inputs,
        input_counts=input_counts,
        group=group if inputs is not None and group > 1 else 0,
        first_channels=first_channels,
        slice_channels=slice_channels,
        accumulate=accumulate,
        pool=True,
    )
