"""A block of gated pre-activation dense layers, in place on one buffer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .conv2d import launch_conv2d
from .gate import launch_gate
from .layout import Channels
from .support import register
from .tiles import ONE, THREE


@register("dense_block", mutates=["x", "sums", "pooled", "live", "live_counts", "taken", "scores", "words", "macs"])
def dense_block(
    x: Tensor,
    sums: Tensor,
    pooled: Tensor,
    live: Tensor,
    live_counts: Tensor,
    taken: Tensor,
    scores: Tensor,
    words: Tensor,
    macs: Tensor,
    thresholds: Tensor,
    forced: Tensor | None,
    enabled: Tensor | None,
    gate_weight: Tensor,
    gate_bias: Tensor,
    norms: list[Tensor],
    reduces: list[Tensor],
    reduce_biases: list[Tensor],
    constants: list[Tensor],
    convs: list[Tensor],
    conv_biases: list[Tensor],
    expands: list[Tensor],
    expand_biases: list[Tensor],
    height: int,
    width: int,
    channels: int,
    growth: int,
    bottleneck: int,
    kind: str,
    concat: bool,
) -> None:
    """Runs, for each sample, the layers of a dense block whose gate opens. Dual Skipping Networks, section 3.1.

    For layer l with input x (concat: all before it; add: the running sum) and p the global average of x:
    ``score = clamp(w . p + b + 1/2, 0, 1)`` (hard) or ``sigmoid(w . p + b)`` (soft); the layer runs iff
    ``score > thresholds[l]``, or iff ``forced[:, l]``. Its output is BN-ReLU-3x3(x), or BN-ReLU-1x1-BN-ReLU-3x3(x) with
    a bottleneck, or BN-ReLU-1x1-BN-ReLU-3x3-BN-ReLU-1x1(x) added to x. A layer that does not run yields zeros.

    A layer is three launches: its gate, which first pools what the layer before has written; the 1x1; the 3x3 (and
    with the add merge a second 1x1). A bottleneck goes through memory.

    Args:
        x: [B, height * width, places], the block's state; its first channels are given, a slice for each layer is
            written, places as in :class:`Channels`.
        sums: float32 [B, units, places], channel sums; those of the first channels are given.
        pooled: float32 [B, places], written.
        live, live_counts: int32 [B, groups] and [B], the groups of channels that hold data: the first ones are given.
        taken, scores: uint8 and float32 [B, L], written; words: int64 [L, W], zeros on entry.
        macs: int64 [B], added to.
        thresholds, forced, enabled: float32 [L]; uint8 [B, L] or None; int64 [W], the samples that are real, or None.
        gate_weight, gate_bias: float32 [L, places] and [L].
        norms, ...: for each layer, as :func:`dsn_kernels.triton.conv2d.conv2d` takes them; empty where the layers have
            none; constants float32 [slices, taps, columns].
        channels, growth, bottleneck: first channels, those that a layer adds, those between 1x1 and 3x3 or 0.
        kind: of the gates: "hard", "soft" or "none".
        concat: the merge; else it is the sum.
    """
    whole = Channels(channels, len(norms) if concat else 0, growth if concat else 0)
    group, pixels = whole.group, height * width
    middle = x.new_empty(x.shape[0], pixels, reduces[0].shape[1] if bottleneck else 0)
    inner = x.new_empty(x.shape[0], pixels, middle.shape[2] if not concat else 0)
    map_size: dict[str, Any] = {"size": (height, width), "out_size": (height, width)}

    def decide(layer: int) -> None:
        first = 0 if layer == 0 or not concat else whole.place(layer - 1)
        new = whole.first_places if layer == 0 or not concat else whole.slice_places
        last = layer == len(norms)
        launch_gate(
            pooled,
            sums[:, :, first:],
            gate_weight[0 if last else layer],
            gate_bias[layer : layer + 1],
            None if last else thresholds[layer:],
            None if last or forced is None else forced[:, layer],
            taken[:, layer - 1] if concat and layer > 0 else None,
            None if last else taken[:, layer],
            None if last else scores[:, layer],
            None if last else words[layer],
            enabled,
            macs,
            old=first,
            new=new,
            pixels=pixels,
            kind="" if last else kind,
            gate_macs=channels + (layer * growth if concat else 0),
            live=live,
            live_counts=live_counts,
            group=group,
        )

    for layer, norm in enumerate(norms):
        decide(layer)
        state: dict[str, Any] = {
            "norm": norm,
            "constants": constants[layer] if concat and layer > 0 else None,
            "words": words[layer],
            "depth": channels,
        }
        if concat:
            state |= {
                "taken": taken,
                "inputs": live,
                "input_counts": live_counts,
                "group": group,
                "first_channels": channels,
                "slice_channels": growth if layer > 0 else 0,
            }
        src = x
        if bottleneck:
            launch_conv2d(
                x,
                reduces[layer],
                reduce_biases[layer],
                middle,
                macs,
                window=ONE,
                filters=bottleneck,
                stored=middle.shape[2],
                activation="relu",
                **map_size,
                **state,
            )
            src, state = middle, {"words": words[layer], "depth": bottleneck}
        if concat:
            at = whole.place(layer)
            launch_conv2d(
                src,
                convs[layer],
                conv_biases[layer],
                x[:, :, at:],
                macs,
                sums=sums[:, :, at:],
                window=THREE,
                filters=growth,
                stored=whole.slice_places,
                **map_size,
                **state,
            )
            continue
        launch_conv2d(
            middle,
            convs[layer],
            conv_biases[layer],
            inner,
            macs,
            window=THREE,
            filters=bottleneck,
            stored=inner.shape[2],
            activation="relu",
            **map_size,
            **state,
        )
        launch_conv2d(
            inner,
            expands[layer],
            expand_biases[layer],
            x,
            macs,
            sums=sums,
            window=ONE,
            filters=channels,
            stored=x.shape[2],
            accumulate=True,
            **map_size,
            **state,
        )
    if concat:
        decide(len(norms))
