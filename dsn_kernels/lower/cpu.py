"""A graph as a plan of the CPU kernels: which instruction for each node, and its weights in their blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dsn_models.errors import UserError

from .. import _C
from ..costs import NO_COSTS, Costs
from ..graph import (
    Conv2d,
    DenseBlock,
    DenseLayer,
    Gate,
    Graph,
    Head,
    Node,
    PathHead,
    Reads,
    Stem,
    Transition,
    find_reads,
)
from .dense_layers import join_dense_layers
from .grouping import join_updates
from .plan import Fields, Plan, fields_of, filled_up

# [(name, offset, shape)] and size, in floats; defined in csrc/common/layout.h.
_Layout = tuple[list[tuple[str, int, list[int]]], int]


def lower(graph: Graph, bfloat16: bool = False, any_size: bool = False, costs: Costs = NO_COSTS) -> Plan:
    """The plan of ``graph`` on this machine's CPU.

    Args:
        graph: the network.
        bfloat16: convolutions and dense layers multiply pairs of bfloat16 and sum in float32; all else is float32.
        any_size: the plan will run on maps of other sizes too.
        costs: by which a thread takes samples side by side.

    Raises:
        UserError: a BN-ReLU stands before a 3x3 whose input channels may hold no data.
    """
    graph = join_updates(join_dense_layers(graph))
    lowering = _Lowering(graph, bfloat16, any_size)
    code = [lowering.instruction(node, reads) for node, reads in zip(graph.nodes, find_reads(graph), strict=True)]
    return Plan(graph, code, lowering.packed(), costs=costs)


class _Lowering:
    """Packs weights as nodes are visited, by layouts of the native core."""

    def __init__(self, graph: Graph, bfloat16: bool, any_size: bool) -> None:
        self.graph, self.bfloat16, self.any_size = graph, bfloat16, any_size
        self.size = 0
        self._chunks: list[Tensor] = []
        self._words: list[tuple[int, Tensor]] = []  # pairs of bfloat16 and where they lie
        self._shared: dict[int, Fields] = {}  # of weights that several nodes read

    def instruction(self, node: Node, reads: Reads) -> Fields:
        fields = fields_of(node, reads)
        pack: Callable[[Any, Reads], Fields] | None = getattr(self, f"pack_{node.op}", None)
        own = self._listed(node, fields) if pack is None else pack(node, reads)
        return fields | own | {"flags": fields["flags"] | own.get("flags", 0)}

    def packed(self) -> Tensor:
        """All weights, float32; words of pairs by their bits."""
        weights = torch.cat(self._chunks or [torch.empty(0)]).float()
        for offset, words in self._words:
            weights.view(torch.int32)[offset : offset + len(words)] = words
        return weights

    def _add(self, layout: _Layout, **values: Tensor | None) -> Fields:
        """Appends weights by the names of their layout, missing ones zero; ``weights``: where they begin, in floats."""
        fields, size = layout
        chunk = torch.zeros(size, dtype=torch.float64)
        for name, offset, shape in fields:
            value = values.get(name)
            if value is None:
                continue
            if list(value.shape) != shape:
                raise ValueError(f"packing {name}: got shape {list(value.shape)}, the layout says {shape}")
            if value.dtype == torch.int32:
                self._words.append((self.size + offset, value.flatten()))
            else:
                chunk[offset : offset + value.numel()] = value.flatten()
        self._chunks.append(chunk)
        self.size += size
        return {"weights": self.size - size}

    def _add_once(self, source: object, layout: _Layout, **values: Tensor) -> Fields:
        """As :meth:`_add`, but once for all nodes that share ``source``, one of their attributes."""
        if id(source) not in self._shared:
            self._shared[id(source)] = self._add(layout, **values)
        return self._shared[id(source)]

    def pack_stem(self, node: Stem, reads: Reads) -> Fields:
        layout = _C.stem_layout(node.in_channels, node.out_channels)
        return self._add_once(node.weight, layout, weight=block_conv(node.weight))

    def pack_dense_block(self, node: DenseBlock, reads: Reads) -> Fields:
        starts = [node.channels_before(layer) for layer in range(len(node.layers))] if node.added else []
        slices = [range(start, start + node.added) for start in starts]
        inner = node.bottleneck if node.merge == "concat" and not (self.bfloat16 or self.any_size) else 0
        winograd = inner > 0 and _C.winograd_pays(inner, node.out_channels, *self.graph.maps[node.dst][1:])
        layers = [self._layer(node, i, layer, slices[:i], winograd) for i, layer in enumerate(node.layers)]
        flags = [name for name, on in (("bfloat16", self.bfloat16), ("winograd", winograd)) if on]
        return layers[0] | {"flags": sum(_C.FLAGS[name] for name in flags)}

    def _layer(self, node: DenseBlock, index: int, layer: DenseLayer, slices: list[range], winograd: bool) -> Fields:
        sizes = node.channels_before(index), node.out_channels, node.bottleneck
        widths = [len(channels) for channels in slices]
        state = [sizes[0] - sum(widths), *widths]
        scale, shift = layer.norm
        first = layer.conv if layer.reduce is None else layer.reduce
        inner = state if layer.reduce is None else [node.bottleneck]
        return self._add(
            _C.dense_layer_layout(*sizes, index, _C.MERGES[node.merge], self.bfloat16, winograd),
            gate=layer.gate,
            gate_bias=layer.gate_bias,
            scale=scale,
            shift=shift,
            reduce=None if layer.reduce is None else self._conv(layer.reduce, state),
            reduce_bias=None if layer.reduce_bias is None else pad_rows(layer.reduce_bias),
            constants=slice_constants(first, shift, slices),
            conv=self._conv(layer.conv, inner),
            conv_bias=None if layer.conv_bias is None else pad_rows(layer.conv_bias),
            expand=None if layer.expand is None else self._conv(layer.expand, [node.bottleneck]),
            winograd=winograd_conv(layer.conv) if winograd else None,
        )

    def _conv(self, weight: Tensor, slices: Sequence[int]) -> Tensor:
        return pair_conv(weight, slices) if self.bfloat16 else block_conv(weight)

    def pack_transition(self, node: Transition, reads: Reads) -> Fields:
        (scale, shift), slices = node.norm, reads.slices
        return self._add(
            _C.transition_layout(len(scale), node.out_channels, len(slices)),
            scale=scale,
            shift=shift,
            weight=block_conv(node.weight),
            constants=slice_constants(node.weight, shift, slices),
        )

    def pack_head(self, node: Head, reads: Reads) -> Fields:
        scale, shift = node.norm
        return self._add(
            _C.head_layout(len(scale), node.out_channels, len(reads.slices)),
            scale=scale,
            shift=shift,
            weight=node.weight.T,
            bias=node.bias,
            constants=slice_constants(node.weight, shift, reads.slices),
        )

    def pack_path_head(self, node: PathHead, reads: Reads) -> Fields:
        scale, shift = node.norm
        return self._add(
            _C.path_head_layout(len(scale), node.out_channels, node.gates),
            scale=scale,
            shift=shift,
            path=node.path.permute(2, 0, 1),
            path_bias=node.path_bias,
            weight=node.weight.T,
            bias=node.bias,
        )

    def pack_conv2d(self, node: Conv2d, reads: Reads) -> Fields:
        masked, grouped = node.out_mask >= 0, node.groups > 1
        bfloat16 = self.bfloat16 and not (node.exact or grouped)
        winograd = not (masked or grouped or bfloat16 or reads.slices) and self._winograd_pays(node)
        constant = reads.slices if node.before is not None else ()
        if constant and node.window.taps > 1:
            raise UserError("a BN-ReLU before a 3x3 is not served where channels may hold no data; expected a 1x1")
        bias = torch.cat([pad_rows(part) for part in node.bias.chunk(node.groups)])
        if winograd:
            bias = F.pad(bias, (0, -len(bias) % _C.WINOGRAD_ROWS))
        if masked:  # [in][tap][out]
            flat = node.weight.flatten(2).permute(1, 2, 0)
            weight = F.pad(flat, (0, -len(node.weight) % _C.TILE))
        else:
            parts = node.weight.chunk(node.groups)
            weight = torch.cat([pair_conv(p, [node.in_channels]) if bfloat16 else block_conv(p) for p in parts])
        scale, shift = node.before or (None, node.bias)
        sizes = (node.in_channels, node.out_channels, node.window.taps)
        fields = self._add(
            _C.conv2d_layout(*sizes, node.before is not None, masked, winograd, len(constant), bfloat16, node.groups),
            scale=scale,
            shift=None if scale is None else shift,
            weight=weight,
            bias=bias,
            winograd=winograd_conv(node.weight) if winograd else None,
            constants=slice_constants(node.weight, shift, constant) if constant else None,
        )
        flags = (_C.FLAGS["winograd"] if winograd else 0) + (_C.FLAGS["bfloat16"] if bfloat16 else 0)
        return fields | {"flags": flags}

    def _winograd_pays(self, node: Conv2d) -> bool:
        plain = node.window.keeps_size and (node.window.rows, node.window.stride) == (3, 1) and node.before is None
        if not plain or self.any_size or node.activated or node.activation not in ("none", "relu"):
            return False
        return _C.winograd_pays(node.in_channels, node.out_channels, *self.graph.maps[node.dst][1:])

    def _listed(self, node: Node, fields: Fields) -> Fields:
        """Packs weights that instructions.def lists, if there are any."""
        values, own = node.listed_weights(), Fields()
        if isinstance(node, Gate) and node.recurrence is not None:
            shared = self._add_once(node.recurrence, _C.recurrence_layout(), **node.recurrence._asdict())
            own["shared"] = shared["weights"]
        if values:
            layout = _C.listed_layout(fields)
            own |= self._add(layout, **filled_up(values, layout))
        return own


def pad_rows(rows: Tensor) -> Tensor:
    """[O, ...] with zeros up to whole blocks of output channels."""
    missing = -rows.shape[0] % _C.row_block(rows.shape[0])
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def block_conv(weight: Tensor) -> Tensor:
    """[O, I, kh, kw] to [blocks, I, kh * kw, rows of a block]."""
    block = _C.row_block(weight.shape[0])
    return pad_rows(weight.flatten(2)).unflatten(0, (-1, block)).permute(0, 2, 3, 1)


def pair_conv(weight: Tensor, slices: Sequence[int]) -> Tensor:
    """As :func:`block_conv`, in bfloat16: int32 [blocks, pairs, kh * kw, rows of a block], two channels in a word.

    Args:
        weight: [O, I, kh, kw].
        slices: channels of each slice of the input; one of an odd number ends in a pair with a zero.
    """
    parts = [F.pad(part, (0, 0, 0, 0, 0, len(part[0]) % 2)) for part in weight.split(list(slices), 1)]
    halves = block_conv(torch.cat(parts, 1)).to(torch.bfloat16).contiguous().view(torch.int16).int()
    low, high = halves.unflatten(1, (-1, 2)).unbind(2)
    return (high << 16) | (low & 0xFFFF)


def winograd_conv(weight: Tensor) -> Tensor:
    """[O, I, 3, 3] to G w G^T of Winograd's F(2x2, 3x3): [4, blocks, 4 * I, rows of a block].

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, section 4.1.
    """
    g = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    transformed = F.pad(g @ weight @ g.T, (0, 0, 0, 0, 0, 0, 0, -len(weight) % _C.WINOGRAD_ROWS))
    return transformed.unflatten(0, (-1, _C.WINOGRAD_ROWS)).permute(3, 0, 4, 2, 1).flatten(2, 3)


def slice_constants(weight: Tensor, shift: Tensor, slices: Sequence[range]) -> Tensor:
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
