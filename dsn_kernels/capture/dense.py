"""Dense networks as graphs: dual skipping, layer-skippable, and DenseNet with chosen filters; and their parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsn_models.densenet import DenseBlock as ReferenceDenseBlock
from dsn_models.densenet import DenseLayer as ReferenceDenseLayer
from dsn_models.densenet import DenseNet
from dsn_models.densenet import Head as ReferenceHead
from dsn_models.densenet import Transition as ReferenceTransition
from dsn_models.dual_skipping import BRANCHES, DualSkippingNetwork, SkipDenseBlock, resolve_thresholds
from dsn_models.errors import UserError
from dsn_models.layer_skippable import LayerSkippableNetwork
from dsn_models.layer_skippable import PathHead as ReferencePathHead
from dsn_models.resnet import PreActivationUnit

from ..graph import DenseBlock, DenseLayer, Graph, Load, PathHead, Stem, Transition
from .builder import PART_SIDE, GraphBuilder, Masks
from .folding import fold, folded_conv
from .registry import FAMILIES, Family, from_config


def capture_dense(model: DualSkippingNetwork | DenseNet, side: int, masks: Masks | None = None) -> Graph:
    """The graph of ``model``.

    Each branch has its own maps and, from the stem on, shares nothing with the other but the guide, so that two threads
    may walk them side by side. A DenseNet is one branch without gates.

    Args:
        model: the reference network.
        side: of the maps that enter the graph: of the images, or of an ImageNet stem's output.
        masks: path of a convolution of a DenseNet to the first of the gates that choose its filters.
    """
    builder = DenseBuilder(masks)
    stem = None if model.config.stem == "imagenet" else folded_conv(model.stem, None)[0]  # torch runs that one
    if isinstance(model, DenseNet):
        builder.add_branch(model, stem, side)
        return builder
    guide = -1
    for name in BRANCHES:
        last = builder.add_branch(getattr(model, name), stem, side, name, guide)
        guide = last if model.config.guide else -1
    return builder


class DenseBuilder(GraphBuilder):
    """Adds blocks, transitions and heads of dense networks to a graph."""

    def add_branch(self, branch: Any, stem: Tensor | None, side: int, name: str = "", guide: int = -1) -> int:
        """Blocks with a head; returns the map of the last block.

        Args:
            branch: has ``blocks``, ``transitions`` and ``head``.
            stem: weight of the 3x3 in front; None: maps enter.
            side: of the maps that enter.
            name: of its gates.
            guide: the map that the last transition reads too, -1 without.
        """
        blocks, first_gate = list(branch.blocks), self.gates
        x = self.map(block_width(blocks[0]), side)
        if stem is None:
            self.add(Load(dst=x, in_channels=blocks[0].layers[0].norm1.num_features, branch=name))
        else:
            self.add(Stem(dst=x, in_channels=stem.shape[1], weight=stem, branch=name))
        for i, block in enumerate(blocks):
            if i > 0:
                side //= 2
                dst = self.map(block_width(block), side)
                guided = guide if i == len(blocks) - 1 else -1
                x = self.add_transition(branch.transitions[i - 1], x, dst, guide=guided, branch=name)
            if self.masks:
                self._add_chosen(f"blocks.{i}", block, x)
            else:
                self.add_block(block, x, branch=name)
        if isinstance(branch.head, ReferencePathHead):
            self._add_path_head(x, branch.head, first_gate, name)
        else:
            self.head(x, branch.head, branch=name)
        return x

    def add_block(self, block: Any, x: int, branch: str = "") -> None:
        """A block, gated or not, in place on ``x``."""
        gates: list[Any] = list(getattr(block, "gates", [])) or [None] * len(block.layers)
        self.add(
            DenseBlock(
                dst=x,
                in_channels=block.layers[0].norm1.num_features,
                layers=tuple(_layer(layer, gate) for layer, gate in zip(block.layers, gates, strict=True)),
                gate=gates[0].kind if gates[0] is not None else "none",
                merge=_merge(block),
                first_gate=self.gates,
                branch=branch,
            )
        )

    def add_transition(self, transition: Any, x: int, dst: int, **fields: Any) -> int:
        weight, _ = folded_conv(transition.conv, None)
        norm = fold(transition.norm)
        self.add(Transition(src=x, dst=dst, in_channels=self.channels(x), norm=norm, weight=weight, **fields))
        return dst

    def _add_chosen(self, path: str, block: Any, x: int) -> None:
        """A block's layers one by one, each with the filters that a mask chooses, over the channels that hold data."""
        channels = block.layers[0].norm1.num_features
        for i, layer in enumerate(block.layers):
            where = f"{path}.layers.{i}"
            if not layer.bottleneck:
                raise UserError("the network has dense layers without a bottleneck; their filters are not chosen")
            inner = self.scratch(layer.conv1.out_channels, self.side(x))
            conv1, conv2 = f"{where}.conv1", f"{where}.conv2"
            self.conv(layer.conv1, layer.norm2, x, inner, activation="relu", path=conv1, before=layer.norm1)
            self.conv(layer.conv2, None, inner, x, path=conv2, out_offset=channels)
            channels += layer.conv2.out_channels

    def _add_path_head(self, x: int, head: Any, first_gate: int, branch: str) -> None:
        channels = self.channels(x)
        self.add(
            PathHead(
                src=x,
                in_channels=channels,
                norm=fold(head.norm),
                weight=head.classifier.weight.detach().double(),
                bias=head.classifier.bias.detach().double(),
                path=head.path.weight.detach().double().unflatten(0, (2, channels)),
                path_bias=head.path.bias.detach().double().unflatten(0, (2, channels)),
                out_offset=self.logits,
                first_gate=first_gate,
                branch=branch,
            )
        )


def block_width(block: Any) -> int:
    """Channels of a dense block's output."""
    layer = block.layers[0]
    if _merge(block) == "add":
        return layer.norm1.num_features
    last = layer.conv2 if layer.bottleneck else layer.conv1
    return layer.norm1.num_features + len(block.layers) * last.out_channels


def _merge(block: Any) -> str:
    return getattr(block, "merge", "concat")


def _layer(layer: Any, gate: Any) -> DenseLayer:
    """A layer's weights, each batch norm but the first folded into the convolution before it."""
    decides, bias = (None, None) if gate is None else _decision(gate)
    norm = fold(layer.norm1)
    adds = hasattr(layer, "conv3")
    if not adds and not layer.bottleneck:
        return DenseLayer(norm, None, None, folded_conv(layer.conv1, None)[0], None, None, decides, bias)
    reduce, reduce_bias = folded_conv(layer.conv1, layer.norm2)
    conv, conv_bias = folded_conv(layer.conv2, layer.norm3 if adds else None)
    expand = folded_conv(layer.conv3, None)[0] if adds else None
    return DenseLayer(norm, reduce, reduce_bias, conv, conv_bias if adds else None, expand, decides, bias)


def _decision(gate: Any) -> tuple[Tensor, Tensor]:
    """Weight [C] and bias [1] of a gate's logit, what it normalises by folded into them."""
    weight, bias = gate.linear.weight.detach().double().flatten(), gate.linear.bias.detach().double()
    if gate.norm is None:
        return weight, bias
    scale, shift = fold(gate.norm)
    return weight * scale, bias + (weight * shift).sum()


def _capture_block(block: Any) -> Graph:
    builder = DenseBuilder()
    x = builder.map(block_width(block), PART_SIDE)
    builder.add(Load(dst=x, in_channels=block.layers[0].norm1.num_features))
    builder.add_block(block, x)
    return builder.stored_at(x)


def _capture_transition(transition: Any) -> Graph:
    builder = DenseBuilder()
    x = builder.load(transition.norm.num_features, PART_SIDE)
    y = builder.map(transition.conv.out_channels, PART_SIDE // 2)
    return builder.stored_at(builder.add_transition(transition, x, y))


def _capture_head(head: Any) -> Graph:
    builder = GraphBuilder()
    builder.head(builder.load(head.norm.num_features, PART_SIDE), head)
    return builder


def _layer_shape(layer: Any) -> tuple[int, int, bool]:
    """Input channels, growth rate and whether there is a bottleneck."""
    growth = (layer.conv2 if layer.bottleneck else layer.conv1).out_channels
    return layer.norm1.num_features, growth, layer.bottleneck


def _block(block: Any) -> nn.Module:
    channels, growth, bottleneck = _layer_shape(block.layers[0])
    return ReferenceDenseBlock(channels, growth, len(block.layers), bottleneck)


def _skip_block(block: Any) -> nn.Module:
    first, count, gate = block.layers[0], len(block.layers), block.gates[0]
    decide: tuple[Any, bool] = (gate.kind, gate.norm is not None)
    if block.merge == "add":
        channels = first.conv3.out_channels
        layers: list[nn.Module] = [PreActivationUnit(channels, channels) for _ in range(count)]
        return SkipDenseBlock(channels, layers, 0, "add", *decide)
    channels, growth, bottleneck = _layer_shape(first)
    layers = [ReferenceDenseLayer(channels + i * growth, growth, bottleneck) for i in range(count)]
    return SkipDenseBlock(channels, layers, growth, "concat", *decide)


_GATED = Family(from_config, capture_dense, limits=resolve_thresholds, parts_decide=True)
FAMILIES |= {
    DualSkippingNetwork: _GATED,
    LayerSkippableNetwork: _GATED,
    DenseNet: Family(from_config, capture_dense),
    ReferenceDenseBlock: Family(_block, part=_capture_block),
    SkipDenseBlock: Family(_skip_block, part=_capture_block),
    ReferenceTransition: Family(
        lambda t: ReferenceTransition(t.norm.num_features, t.conv.out_channels), part=_capture_transition
    ),
    ReferenceHead: Family(lambda h: ReferenceHead(h.norm.num_features, h.classifier.out_features), part=_capture_head),
}
