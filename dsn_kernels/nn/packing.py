"""Weights as the kernels read them: batch norms folded in float64, convolutions in blocks of output channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsn_models.densenet import DenseBlock, DenseLayer, Head, Transition
from dsn_models.dual_skipping import SkipDenseBlock
from dsn_models.errors import UserError
from dsn_models.layer_skippable import PathHead
from dsn_models.resnet import PreActivationUnit

from .. import _C


class Packer:
    """Collects packed units; a unit's layout comes from the native core, which is where it is defined.

    Args:
        bfloat16: convolutions multiply pairs of bfloat16, on the CPU; their weights are packed so.
    """

    def __init__(self, bfloat16: bool = False) -> None:
        self.bfloat16 = bfloat16
        self.size = 0
        self._chunks: list[Tensor] = []
        self._words: list[tuple[int, Tensor]] = []  # pairs of bfloat16 and where they lie

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
                if value.dtype == torch.int32:
                    self._words.append((self.size + offset, value.flatten()))
                    continue
                chunk[offset : offset + count] = value.detach().double().flatten()
        if values:
            raise ValueError(f"packing: the layout has no field {', '.join(values)}")
        self._chunks.append(chunk)
        self.size += size
        return self.size - size

    def tensor(self) -> Tensor:
        """All units, float32 [size]; words of pairs by their bits."""
        packed = torch.cat(self._chunks).float()
        for offset, words in self._words:
            packed.view(torch.int32)[offset : offset + len(words)] = words
        return packed


def fold(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
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


def pair_conv(weight: Tensor, slices: Sequence[int]) -> Tensor:
    """As :func:`block_conv`, in bfloat16: int32 [blocks, pairs, kh * kw, rows of a block], two channels in a word.

    Args:
        weight: [O, I, kh, kw].
        slices: channels of each slice of the input; one of an odd number ends in a pair with a zero.
    """
    parts = [nn.functional.pad(part, (0, 0, 0, 0, 0, len(part[0]) % 2)) for part in weight.split(list(slices), 1)]
    halves = block_conv(torch.cat(parts, 1)).to(torch.bfloat16).contiguous().view(torch.int16).int()
    low, high = halves.unflatten(1, (-1, 2)).unbind(2)
    return (high << 16) | (low & 0xFFFF)


def winograd_conv(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] to G w G^T of Winograd's F(2x2, 3x3): [4, blocks, 4 * I, rows of a block].

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, section 4.1.
    """
    g = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    transformed = nn.functional.pad(g @ weight @ g.T, (0, 0, 0, 0, 0, 0, 0, -len(weight) % _C.WINOGRAD_ROWS))
    return transformed.unflatten(0, (-1, _C.WINOGRAD_ROWS)).permute(3, 0, 4, 2, 1).flatten(2, 3)


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
    if slices and all(len(s) == 1 for s in slices):
        constants = products[:, [s.start for s in slices]].transpose(0, 1)
    else:
        sums = [products[:, s.start : s.stop].sum(1) for s in slices]  # [O, taps]
        constants = torch.stack(sums) if sums else taps.new_zeros(0, taps.shape[0], taps.shape[2])
    if weight.dim() == 4:
        constants = pad_rows(constants.transpose(0, 1)).transpose(0, 1)
    constants = constants.transpose(1, 2)
    return constants if constants.shape[1] > 1 else constants.squeeze(1)


AnyDenseBlock = SkipDenseBlock | DenseBlock


def _merge(block: AnyDenseBlock) -> str:
    return block.merge if isinstance(block, SkipDenseBlock) else "concat"


def skippable_slices(block: AnyDenseBlock) -> list[range]:
    """The channels that each layer of a dense block adds; none for the add merge."""
    if _merge(block) == "add":
        return []
    growth, start = _conv_out(_layers(block)[0]), _in_channels(block)
    return [range(start + i * growth, start + (i + 1) * growth) for i in range(len(block.layers))]


def block_width(block: AnyDenseBlock) -> int:
    """Channels of a dense block's output."""
    slices = skippable_slices(block)
    return slices[-1].stop if slices else _in_channels(block)


def _in_channels(block: AnyDenseBlock) -> int:
    return _layers(block)[0].norm1.num_features


def _layers(block: AnyDenseBlock) -> list[Any]:
    return list(block.layers)  # DenseLayer or PreActivationUnit, which a ModuleList does not say


def _conv_out(layer: DenseLayer | PreActivationUnit) -> int:
    """Channels that a layer returns."""
    if isinstance(layer, PreActivationUnit):
        return layer.conv3.out_channels
    return (layer.conv2 if layer.bottleneck else layer.conv1).out_channels


def pack_dense_block(packer: Packer, block: AnyDenseBlock) -> dict[str, int]:
    """Packs a block, gated or not; returns the fields of its instruction."""
    first, gates = _layers(block)[0], list[Any](block.gates) if isinstance(block, SkipDenseBlock) else []
    growth, merge = _conv_out(first), _C.MERGES[_merge(block)]
    bottleneck = first.conv1.out_channels if isinstance(first, PreActivationUnit) or first.bottleneck else 0
    slices = skippable_slices(block)
    offsets = []
    for i, layer in enumerate(_layers(block)):
        layout = _C.dense_layer_layout(layer.norm1.num_features, growth, bottleneck, i, merge, packer.bfloat16)
        fields = _layer_fields(layer, slices[:i], packer.bfloat16)
        if gates:
            fields |= {"gate": gates[i].linear.weight.flatten(), "gate_bias": gates[i].linear.bias}
        offsets.append(packer.add(layout, **fields))
    return {
        "in_channels": _in_channels(block),
        "out_channels": growth,
        "layers": len(block.layers),
        "bottleneck": bottleneck,
        "gate": _C.GATES[gates[0].kind if gates else "none"],
        "merge": merge,
        "weights": offsets[0],
        "flags": _C.FLAGS["bfloat16"] if packer.bfloat16 else 0,
    }


def _layer_fields(
    layer: DenseLayer | PreActivationUnit, slices: list[range], bfloat16: bool = False
) -> dict[str, Tensor]:
    """A layer's weights, each batch norm but the first folded into the convolution before it."""

    def packed(weight: Tensor, parts: Sequence[int]) -> Tensor:
        return pair_conv(weight, parts) if bfloat16 else block_conv(weight)

    scale, shift = fold(layer.norm1)
    first = layer.conv1.weight.double()
    widths = [len(part) for part in slices] if isinstance(layer, DenseLayer) else []
    state = [first.shape[1] - sum(widths), *widths]
    fields = {"scale": scale, "shift": shift}
    if isinstance(layer, DenseLayer) and not layer.bottleneck:
        return fields | {"conv": packed(first, state), "constants": slice_constants(first, shift, slices)}
    scale2, shift2 = fold(layer.norm2)
    first = first * scale2[:, None, None, None]
    second, inner = layer.conv2.weight.double(), [first.shape[0]]
    fields |= {"reduce": packed(first, state), "reduce_bias": pad_rows(shift2)}
    if isinstance(layer, DenseLayer):
        return fields | {"conv": packed(second, inner), "constants": slice_constants(first, shift, slices)}
    scale3, shift3 = fold(layer.norm3)
    second = second * scale3[:, None, None, None]
    expand = packed(layer.conv3.weight.double(), [second.shape[0]])
    return fields | {"conv": packed(second, inner), "conv_bias": pad_rows(shift3), "expand": expand}


def pack_transition(packer: Packer, module: Transition, slices: list[range]) -> int:
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


def pack_head(packer: Packer, module: Head, slices: list[range]) -> int:
    """Packs a `Head` whose input holds the skippable ``slices``; returns its offset."""
    scale, shift = fold(module.norm)
    weight = module.classifier.weight.double()
    return packer.add(
        _C.head_layout(scale.numel(), weight.shape[0], len(slices)),
        scale=scale,
        shift=shift,
        weight=weight.T,
        bias=module.classifier.bias,
        constants=slice_constants(weight, shift, slices),
    )


def pack_path_head(packer: Packer, module: PathHead) -> int:
    """Packs a `PathHead`; returns its offset."""
    scale, shift = fold(module.norm)
    classes, channels = module.classifier.weight.shape
    gates = module.path.in_features
    return packer.add(
        _C.path_head_layout(channels, classes, gates),
        scale=scale,
        shift=shift,
        path=module.path.weight.T.unflatten(1, (2, channels)),
        path_bias=module.path.bias.unflatten(0, (2, channels)),
        weight=module.classifier.weight.T,
        bias=module.classifier.bias,
    )


def pack_stem(packer: Packer, conv: nn.Conv2d) -> int:
    """Packs a 3x3 stem; returns its offset."""
    layout = _C.stem_layout(conv.in_channels, conv.out_channels)
    return packer.add(layout, weight=block_conv(conv.weight.double()))


def pack_conv2d(
    packer: Packer,
    conv: nn.Conv2d,
    norm: nn.Module | None,
    before: nn.Module | None = None,
    masked: bool = False,
    winograd: bool = False,
    slices: Sequence[range] = (),
    exact: bool = False,
) -> dict[str, int]:
    """Packs a convolution; returns the fields of its instruction that it decides.

    Args:
        conv: of one group, without dilation, with equal strides.
        norm: the batch norm behind it, folded into it; None or an identity if there is none.
        before: the batch norm of a BN-ReLU in front of it, or a ReLU alone; None if there is none.
        masked: a mask chooses its filters.
        winograd: its weights are packed for Winograd's F(2x2, 3x3) too.
        slices: channels of its input that may hold no data; after a BN-ReLU they are constants then.
        exact: in float32 even if the packer is for bfloat16.

    Raises:
        UserError: the convolution is of another kind.
    """
    geometry = _geometry(conv)
    weight, bias = folded_conv(conv, norm)
    return geometry | pack_folded(packer, weight, bias, before, masked, winograd, slices, exact)


def folded_1x1(parts: list[tuple[nn.Conv2d, nn.Module]]) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of 1x1 convolutions of one input, each with its batch norm, as of one."""
    weight, bias = zip(*(folded_conv(conv, norm) for conv, norm in parts), strict=True)
    return torch.cat(weight), torch.cat(bias)


def pack_joined_1x1(packer: Packer, parts: list[tuple[nn.Conv2d, nn.Module]]) -> dict[str, int]:
    """Packs 1x1 convolutions of one input, each with its batch norm, as one with all their filters."""
    return {"stride": 1, **pack_folded(packer, *folded_1x1(parts))}


def _geometry(conv: nn.Conv2d) -> dict[str, int]:
    """Stride and, unless it is a 1x1 or 3x3 that keeps the size, columns and padding."""
    stride, padding = conv.stride[0], conv.padding
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.stride[1] == stride and conv.padding_mode == "zeros"
    if not plain or isinstance(padding, str):
        raise UserError(
            f"{conv} is not served; expected one group, no dilation, equal strides, padding in numbers and of zeros"
        )
    rows, columns = conv.kernel_size
    if rows == columns and rows in (1, 3) and stride in (1, 2) and padding == (rows // 2, rows // 2):
        return {"stride": stride}
    return {"stride": stride, "columns": columns, "pad_rows": padding[0], "pad_columns": padding[1]}


def folded_conv(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, with the batch norm behind the convolution folded in."""
    weight = conv.weight.double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    if isinstance(norm, nn.BatchNorm2d):
        scale, shift = fold(norm)
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    return weight, bias


def pack_folded(
    packer: Packer,
    weight: Tensor,
    bias: Tensor,
    before: nn.Module | None = None,
    masked: bool = False,
    winograd: bool = False,
    slices: Sequence[range] = (),
    exact: bool = False,
) -> dict[str, int]:
    """As :func:`pack_conv2d`, for a weight [O, I, kh, kw] and bias [O]; it decides no stride or padding."""
    out_channels, in_channels, taps = weight.flatten(2).shape
    bfloat16 = packer.bfloat16 and not exact
    fields: dict[str, Tensor] = {"bias": pad_rows(bias)}
    if isinstance(before, nn.BatchNorm2d):
        fields["scale"], fields["shift"] = fold(before)
    elif before is not None:
        fields["scale"], fields["shift"] = torch.ones(in_channels), torch.zeros(in_channels)
    constant = list(slices) if before is not None else []
    if constant:
        if taps > 1:
            raise UserError("a BN-ReLU before a 3x3 is not served where channels may hold no data; expected a 1x1")
        fields["constants"] = slice_constants(weight, fields["shift"], constant)
    if masked:  # [in][tap][out]
        flat = weight.flatten(2).permute(1, 2, 0)
        fields["weight"] = nn.functional.pad(flat, (0, -len(weight) % _C.TILE))
    else:
        fields["weight"] = pair_conv(weight, [in_channels]) if bfloat16 else block_conv(weight)
    if winograd:
        fields["winograd"] = winograd_conv(weight)
        fields["bias"] = nn.functional.pad(fields["bias"], (0, -len(fields["bias"]) % _C.WINOGRAD_ROWS))
    sizes = (in_channels, out_channels, taps)
    layout = _C.conv2d_layout(*sizes, before is not None, masked, winograd, len(constant), bfloat16)
    flags = {"flags": _C.FLAGS["bfloat16"]} if bfloat16 else {}
    return flags | {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "taps": taps,
        "weights": packer.add(layout, **fields),
    }


def pack_gate(packer: Packer, weight: Tensor, bias: Tensor) -> int:
    """Packs the linear map [1, C] of a gate, or [10, C] of a recurrent gate's embedding; returns its offset."""
    layout = _C.gate_layout(weight.shape[1], weight.shape[0] > 1)
    return packer.add(layout, weight=weight.double(), bias=bias.double())


def pack_recurrence(packer: Packer, cell: nn.LSTMCell, projection: nn.Linear) -> int:
    """Packs the LSTM that a network's recurrent gates share; returns its offset."""
    return packer.add(
        _C.recurrence_layout(),
        input=cell.weight_ih,
        hidden=cell.weight_hh,
        bias=cell.bias_ih.double() + cell.bias_hh.double(),
        projection=projection.weight.flatten(),
        projection_bias=projection.bias,
    )


def pack_linear(packer: Packer, module: nn.Linear) -> int:
    """Packs a linear classifier; returns its offset."""
    layout = _C.linear_layout(module.in_features, module.out_features)
    return packer.add(layout, weight=module.weight, bias=module.bias)
