"""The nodes of dense networks: stem, dense block, transition, head."""

from __future__ import annotations

import torch
from torch import Tensor

from dsn_models.errors import UserError

from ..graph import nodes
from . import resample
from .conv2d import conv2d
from .dense_block import dense_block
from .head import head, linear, path_features
from .layout import Channels, pad, padded
from .preact_conv2d import preact_conv2d
from .step import Facts, Map, Run, Step, pack_norm
from .tiles import THREE, UNIT


class Stem(Step, serves=[nodes.Stem]):
    def __init__(self, node: nodes.Stem, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.out_channels = node.out_channels
        flat = node.in_channels < UNIT
        self._keep("weight", facts.matrix(node.weight, None if flat else Channels(node.in_channels)), facts.dtype)
        self._keep("bias", torch.zeros(padded(node.out_channels)))

    def forward(self, run: Run) -> None:
        size, to = run.sizes[self.dst], run.into(self.dst, self.pool)
        no_lists = (None,) * 6  # every channel, every filter
        conv2d(
            resample.as_rows(run.image, run.dtype, self.in_channels),
            self.weight,
            self.bias,
            None,
            to.data,
            to.sums,
            run.macs,
            run.enabled,
            *no_lists,
            size,
            size,
            THREE[:6],
            self.in_channels,
            self.out_channels,
            run.layouts[self.dst].first_places,
            1,
            "none",
            0,
            False,
            False,
            False,
        )


_BEFORE_A_BLOCK = (nodes.Load, nodes.Stem, nodes.Transition, nodes.DenseBlock)


class DenseBlock(Step, serves=[nodes.DenseBlock]):
    def __init__(self, node: nodes.DenseBlock, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        for other in facts.graph.nodes[:index]:
            # It needs channel sums, and zeros in the padding.
            if other.dst == node.dst and not isinstance(other, _BEFORE_A_BLOCK):
                raise UserError(
                    f"{node.where or node.op}: a dense block on the map of a {other.op} is not served; "
                    "expected that of a load, a stem or a transition"
                )
        self.kind, self.concat = node.gate, node.merge == "concat"
        self.out_channels, self.bottleneck = node.out_channels, node.bottleneck
        self.columns = slice(node.first_gate, node.first_gate + len(node.layers))
        self.layout = facts.layouts[node.dst]
        lists: dict[str, list[Tensor]] = {name: [] for name in (*_PRODUCTS, *_FLOATS)}
        gates, biases = [], []
        for i, layer in enumerate(node.layers):
            gate, bias = layer.gate, layer.gate_bias
            if gate is None or bias is None:
                gate, bias = layer.conv.new_zeros(node.channels_before(i)), layer.conv.new_zeros(1)
            spread = self.layout.before(i).spread(gate, 0)
            gates.append(torch.cat([spread, spread.new_zeros(self.layout.places - len(spread))]))
            biases.append(bias)
            for name, value in _pack_layer(layer, facts, self.layout.before(i)).items():
                lists[name].append(value)
        self._keep("gate_weight", torch.stack(gates))
        self._keep("gate_bias", torch.cat(biases))
        for name, values in lists.items():
            self._keep_list(name, values, facts.dtype if name in _PRODUCTS else torch.float32)

    def forward(self, run: Run) -> None:
        m, columns = run.maps[self.dst], self.columns
        assert m.sums is not None
        pooled = m.sums.new_empty(run.batch, self.layout.places)
        live = torch.arange(self.layout.groups, dtype=torch.int32, device=pooled.device).repeat(run.batch, 1)
        counts = torch.full_like(live[:, 0], self.layout.first_groups)
        dense_block(
            m.data,
            m.sums,
            pooled,
            live,
            counts,
            run.taken[:, columns],
            run.scores[:, columns],
            run.words[columns],
            run.macs,
            run.thresholds[columns],
            None if run.forced is None else run.forced[:, columns],
            run.enabled,
            self.gate_weight,
            self.gate_bias,
            self._list("norm"),
            self._list("reduce"),
            self._list("reduce_bias"),
            self._list("constants"),
            self._list("conv"),
            self._list("conv_bias"),
            self._list("expand"),
            self._list("expand_bias"),
            *run.sizes[self.dst],
            self.in_channels,
            self.out_channels,
            self.bottleneck,
            self.kind,
            self.concat,
        )
        if self.concat:
            m.live, m.live_counts, m.taken = live, counts, run.taken[:, columns]


_PRODUCTS = ("reduce", "conv", "expand")
_FLOATS = ("norm", "reduce_bias", "constants", "conv_bias", "expand_bias")


def _pack_layer(layer: nodes.DenseLayer, facts: Facts, before: Channels) -> dict[str, Tensor]:
    """A layer whose input lies as ``before``, in the names of :func:`dense_block`."""
    state, fields = before, {"norm": pack_norm(layer.norm, before)}
    if layer.reduce is not None and layer.reduce_bias is not None:
        fields["reduce"] = facts.matrix(layer.reduce, before)
        fields["reduce_bias"] = pad(layer.reduce_bias, 0)
        state = Channels(len(layer.reduce))
    fields["conv"] = facts.matrix(layer.conv, state)
    if layer.conv_bias is not None and layer.expand is not None:
        fields["conv_bias"] = pad(layer.conv_bias, 0)
        fields["expand"] = facts.matrix(layer.expand, Channels(len(layer.conv)))
        fields["expand_bias"] = layer.expand.new_zeros(fields["expand"].shape[1])
        return fields
    reader = layer.conv if layer.reduce is None else layer.reduce
    fields["constants"] = before.constants(reader.flatten(2), layer.norm.shift)
    fields["conv_bias"] = layer.conv.new_zeros(fields["conv"].shape[1])
    return fields


class Transition(Step, serves=[nodes.Transition]):
    reads_slices = True

    def __init__(self, node: nodes.Transition, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.guide, self.out_channels = node.guide, node.out_channels
        layouts = [facts.layouts[map] for map in (node.src, node.guide) if map >= 0]
        widths = [layout.total for layout in layouts]
        parts = zip(node.weight.split(widths, 1), *(part.split(widths) for part in node.norm), strict=True)
        for i, (layout, (weight, scale, shift)) in enumerate(zip(layouts, parts, strict=True)):
            self._keep(f"norm{i}", pack_norm(nodes.Affine(scale, shift), layout))
            self._keep(f"weight{i}", facts.matrix(weight, layout), facts.dtype)
            self._keep(f"constants{i}", layout.constants(weight.flatten(2), shift))
        self._keep("bias", torch.zeros(padded(node.out_channels)))

    def forward(self, run: Run) -> None:
        source, to = run.maps[self.src], run.into(self.dst, self.pool)
        if self.guide < 0:
            self._convolve(run, 0, source, source.data, to.data, to.sums)
            return
        # The sum of both parts is rounded once.
        total = torch.empty_like(to.data, dtype=torch.float32)
        guide = run.maps[self.guide]
        wide = resample.upsample(guide.data, *run.sizes[self.guide], *run.sizes[self.src])
        self._convolve(run, 0, source, source.data, total, None)
        self._convolve(run, 1, guide, wide, total, to.sums)
        to.data.copy_(total)

    def _convolve(self, run: Run, part: int, source: Map, data: Tensor, dst: Tensor, sums: Tensor | None) -> None:
        """``part``: 0 for the branch's own map, 1 for the guide, which is added."""
        layout = run.layouts[self.guide if part else self.src]
        inputs, counts, group = self._inputs(run, source, layout)
        preact_conv2d(
            data,
            getattr(self, f"norm{part}"),
            getattr(self, f"weight{part}"),
            self.bias,
            None if source.taken is None else getattr(self, f"constants{part}"),
            dst[..., : run.layouts[self.dst].first_places],
            sums,
            run.macs,
            run.enabled,
            source.taken,
            inputs,
            counts,
            *run.sizes[self.src],
            layout.total,
            self.out_channels,
            group,
            layout.first,
            layout.width,
            part > 0,
        )


class Head(Step, serves=[nodes.Head]):
    reads_slices = True

    def __init__(self, node: nodes.Head, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.out_channels, self.out_offset = node.out_channels, node.out_offset
        layout = facts.layouts[node.src]
        self._keep("norm", pack_norm(node.norm, layout))
        self._keep("weight", pad(layout.spread(node.weight.T, 0), 1))
        self._keep("bias", pad(node.bias, 0))
        self._keep("constants", layout.constants(node.weight[:, :, None], node.norm.shift).squeeze(1))

    def forward(self, run: Run) -> None:
        m, layout = run.maps[self.src], run.layouts[self.src]
        inputs, counts, group = self._inputs(run, m, layout)
        head(
            m.data,
            self.norm,
            self.weight,
            self.bias,
            None if m.taken is None else self.constants,
            run.logits[:, self.out_offset :],
            run.macs,
            run.enabled,
            m.taken,
            inputs,
            counts,
            run.pixels(self.src),
            layout.total,
            self.out_channels,
            group,
            layout.first,
            layout.width,
            "none",
        )


class PathHead(Step, serves=[nodes.PathHead]):
    reads_slices = True
    weight: Tensor
    bias: Tensor

    def __init__(self, node: nodes.PathHead, index: int, facts: Facts) -> None:
        super().__init__(node, index, facts)
        self.out_channels, self.out_offset = node.out_channels, node.out_offset
        self.columns = slice(node.first_gate, node.first_gate + node.gates)
        layout = facts.layouts[node.src]
        self._keep("norm", pack_norm(node.norm, layout))
        self._keep("path", layout.spread(node.path.permute(2, 0, 1), 2))
        self._keep("path_bias", layout.spread(node.path_bias, 1))
        self._keep("weight", pad(pad(node.weight.T, 0), 1))
        self._keep("bias", pad(node.bias, 0))

    def forward(self, run: Run) -> None:
        m, layout = run.maps[self.src], run.layouts[self.src]
        features = run.logits.new_empty(run.batch, 1, layout.places)
        path_features(
            m.data,
            self.norm,
            self.path,
            self.path_bias,
            features,
            run.macs,
            run.enabled,
            run.taken[:, self.columns],
            m.taken,
            layout.total,
            layout.group,
            layout.first,
            layout.width,
        )
        logits, sizes = run.logits[:, self.out_offset :], (1, layout.total, self.out_channels)
        linear(layout.gather(features), self.weight, self.bias, logits, run.macs, run.enabled, *sizes)
