"""Weights as the kernels read them: batch norms folded in float64, convolutions in blocks of output channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _C


class Packer:
    """Collects packed units; a unit's layout comes from the native core, which is where it is defined."""

    def __init__(self) -> None:
        self.size = 0
        self._chunks: list[Tensor] = []

    def add(self, layout: tuple[list[tuple[str, int, list[int]]], int], **values: Tensor) -> int:
        """Appends one unit with its fields by name, missing ones zero; returns its offset in floats."""
        fields, size = layout
        chunk = torch.zeros(size, dtype=torch.float64)
        for name, offset, shape in fields:
            value = values.pop(name, None)
            if value is not None:
                count = value.numel()
                if list(value.shape) != shape:
                    raise ValueError(f"packing {name}: got shape {list(value.shape)}, the layout says {shape}")
                chunk[offset : offset + count] = value.detach().double().flatten()
        if values:
            raise ValueError(f"packing: the layout has no field {', '.join(values)}")
        self._chunks.append(chunk)
        self.size += size
        return self.size - size

    def tensor(self) -> Tensor:
        """All units, float32 [size]."""
        return torch.cat(self._chunks).float()


def fold(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(s, t) with ``norm(x) = s x + t`` in ``eval()``, float64 [C]."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded: train it with track_running_stats")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def pad_rows(rows: Tensor) -> Tensor:
    """[O, ...] with zeros up to whole blocks of output channels."""
    block = _C.row_block(rows.shape[0])
    missing = -rows.shape[0] % block
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def block_conv(weight: Tensor) -> Tensor:
    """[O, I, kh, kw] to [blocks, I, kh * kw, rows of a block]."""
    block = _C.row_block(weight.shape[0])
    padded = pad_rows(weight.flatten(2))
    return padded.unflatten(0, (-1, block)).permute(0, 2, 3, 1)


def slice_constants(weight: Tensor, shift: Tensor, slices: list[range]) -> Tensor:
    """What a skipped slice gives its consumer: ``relu(shift)`` of its channels times their weights.

    Args:
        weight: [O, I, kh, kw] or [O, I], of the consumer.
        shift: [I], of the consumer's batch norm.
        slices: channels of each skippable slice.

    Returns:
        [slices, kh * kw, padded O], without the middle dimension for one tap; [slices, O] for a linear layer.
    """
    taps = weight.flatten(2) if weight.dim() == 4 else weight[:, :, None]
    products = taps * shift.relu()[None, :, None]  # [O, I, taps]
    sums = [products[:, s.start : s.stop].sum(1) for s in slices]  # [O, taps]
    constants = torch.stack(sums) if sums else taps.new_zeros(0, taps.shape[0], taps.shape[2])
    if weight.dim() == 4:
        constants = pad_rows(constants.transpose(0, 1)).transpose(0, 1)
    constants = constants.transpose(1, 2)
    return constants if constants.shape[1] > 1 else constants.squeeze(1)


def skippable_slices(block: nn.Module, first: int = 0) -> list[range]:
    """The channels that each gated layer of a concatenating dense block adds, counted from ``first``."""
    if block.merge != "concat":
        return []
    start = first + block.layers[0].norm1.num_features
    growth = last_conv(block.layers[0]).out_channels
    return [range(start + i * growth, start + (i + 1) * growth) for i in range(len(block.layers))]


def last_conv(layer: nn.Module) -> nn.Conv2d:
    """The convolution whose output a dense layer returns."""
    return getattr(layer, "conv3", None) or getattr(layer, "conv2", None) or layer.conv1


def pack_dense_block(packer: Packer, block: nn.Module) -> dict[str, int]:
    """Packs a `SkipDenseBlock`; returns the plan's fields that describe it."""
    merge = block.merge
    first = block.layers[0]
    bottleneck = first.conv1.out_channels if hasattr(first, "conv2") else 0
    growth = last_conv(first).out_channels
    slices = skippable_slices(block)
    offsets = []
    for i, (layer, gate) in enumerate(zip(block.layers, block.gates, strict=True)):
        scale, shift = fold(layer.norm1)
        weight = layer.conv1.weight.double()
        fields = {"gate": gate.linear.weight.flatten(), "gate_bias": gate.linear.bias, "scale": scale, "shift": shift}
        if bottleneck:
            scale2, shift2 = fold(layer.norm2)
            weight = weight * scale2[:, None, None, None]
            fields |= {"reduce": block_conv(weight), "reduce_bias": pad_rows(shift2)}
            conv = layer.conv2.weight.double()
            if merge == "add":
                scale3, shift3 = fold(layer.norm3)
                conv = conv * scale3[:, None, None, None]
                fields |= {"conv_bias": pad_rows(shift3), "expand": block_conv(layer.conv3.weight.double())}
            fields["conv"] = block_conv(conv)
        else:
            fields["conv"] = block_conv(weight)
        if merge == "concat":
            fields["constants"] = slice_constants(weight, shift, slices[:i])
        layout = _C.dense_layer_layout(scale.numel(), growth, bottleneck, i, _C.MERGES[merge])
        fields["constants"] = fields.get("constants", torch.zeros(_shape(layout, "constants"))).reshape(
            _shape(layout, "constants")
        )
        offsets.append(packer.add(layout, **fields))
    return {
        "in_channels": first.norm1.num_features,
        "out_channels": growth,
        "layers": len(block.layers),
        "bottleneck": bottleneck,
        "gate": _C.GATES[block.gates[0].kind],
        "merge": _C.MERGES[merge],
        "weights": offsets[0],
    }


def _shape(layout: tuple[list[tuple[str, int, list[int]]], int], name: str) -> list[int]:
    return next(shape for field, _, shape in layout[0] if field == name)


def pack_transition(packer: Packer, module: nn.Module, slices: list[range]) -> int:
    """Packs a `Transition` whose input holds the skippable ``slices``; returns its offset."""
    scale, shift = fold(module.norm)
    weight = module.conv.weight.double()
    return packer.add(
        _C.transition_layout(scale.numel(), weight.shape[0], len(slices)),
        scale=scale,
        shift=shift,
        weight=block_conv(weight),
        constants=slice_constants(weight, shift, slices),
    )


def pack_head(packer: Packer, module: nn.Module, slices: list[range]) -> int:
    """Packs a `Head` whose input holds the skippable ``slices``; returns its offset."""
    scale, shift = fold(module.norm)
    weight = module.classifier.weight.double()
    return packer.add(
        _C.head_layout(scale.numel(), weight.shape[0], len(slices)),
        scale=scale,
        shift=shift,
        weight=weight,
        bias=module.classifier.bias,
        constants=slice_constants(weight, shift, slices),
    )


def pack_stem(packer: Packer, conv: nn.Conv2d) -> int:
    """Packs a 3x3 stem; returns its offset."""
    layout = _C.stem_layout(conv.in_channels, conv.out_channels)
    return packer.add(layout, weight=block_conv(conv.weight.double()))
