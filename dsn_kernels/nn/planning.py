"""Dense networks as plans of the native runtime: dual skipping, layer-skippable, and DenseNet with chosen filters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsn_models.densenet import DenseNet
from dsn_models.dual_skipping import BRANCHES, DualSkippingNetwork
from dsn_models.errors import UserError
from dsn_models.layer_skippable import PathHead

from ..ops.network import Plan
from .packing import block_width, pack_dense_block, pack_path_head, pack_stem, pack_transition, skippable_slices
from .plan_builder import Masks, PlanBuilder


def plan_dense(
    model: DualSkippingNetwork | DenseNet, side: int, masks: Masks | None = None, bfloat16: bool = False
) -> tuple[Plan, Tensor]:
    """The plan of ``model`` and the packed weights it names, float32.

    Each branch has its own buffers and, from the stem on, shares nothing with the other but the guide, so that two
    threads may walk them side by side. A DenseNet is one branch without gates.

    Args:
        model: the reference network.
        side: of the maps that enter the plan: of the images, or of an ImageNet stem's output.
        masks: path of a convolution of a DenseNet to the first of the gates that choose its filters.
        bfloat16: of the products of dense layers, on the CPU.
    """
    planner = _Planner(model, side, masks, bfloat16)
    planner.plan_network()
    return planner.result()


class _Planner(PlanBuilder):
    def __init__(self, model: Any, side: int, masks: Masks | None, bfloat16: bool) -> None:
        super().__init__(masks, bfloat16=bfloat16)
        self.model, self.config, self.first_side = model, model.config, side
        self.stem_weights = pack_stem(self.packer, model.stem) if isinstance(model.stem, nn.Conv2d) else 0
        self.guide = -1

    def plan_network(self) -> None:
        if isinstance(self.model, DenseNet):
            self._plan_branch(self.model)
            return
        for name in BRANCHES:
            last = self._plan_branch(getattr(self.model, name))
            if self.config.guide and name == BRANCHES[0]:
                self.guide = last

    def _plan_branch(self, branch: Any) -> int:
        """Appends a branch; returns the buffer of its last block."""
        blocks = list(branch.blocks)
        side, first_gate = self.first_side, self.plan.gates
        x = self._plan_stem(self.buffer(block_width(blocks[0]), side))
        for i, block in enumerate(blocks):
            if i > 0:
                side //= 2
                guide = self.guide if i == len(blocks) - 1 else -1
                x = self._plan_transition(branch.transitions[i - 1], x, self.buffer(block_width(block), side), guide)
            if self.masks:
                self._plan_chosen(f"blocks.{i}", block, x)
            else:
                fields = pack_dense_block(self.packer, block)
                self.plan.add("dense_block", dst=x, first_gate=self.plan.gates, **fields)
                self.slices[x] = skippable_slices(block)
        if isinstance(branch.head, PathHead):
            self._plan_path_head(x, branch.head, first_gate)
        else:
            self.head(x, branch.head, out_offset=self.plan.logits)
        return x

    def _plan_stem(self, dst: int) -> int:
        channels = 2 * self.config.growth_rate
        if self.config.stem == "imagenet":  # torch runs it
            self.plan.add("load", dst=dst, in_channels=channels)
        else:
            fields = {"in_channels": self.config.in_channels, "out_channels": channels}
            self.plan.add("stem", dst=dst, weights=self.stem_weights, **fields)
        return dst

    def _plan_transition(self, transition: Any, x: int, dst: int, guide: int) -> int:
        width, slices = self.channels(x), self.slices[x]
        if guide >= 0:  # its channels follow the branch's own
            slices = slices + [range(s.start + width, s.stop + width) for s in self.slices[guide]]
        out_channels = transition.conv.out_channels
        self.plan.add(
            "transition",
            src=x,
            dst=dst,
            in_channels=width,
            out_channels=out_channels,
            guide=guide,
            weights=pack_transition(self.packer, transition, slices),
        )
        self.written(dst, 0, out_channels, False)
        return dst

    def _plan_chosen(self, path: str, block: Any, x: int) -> None:
        """A block's layers one by one, each with the filters that a mask chooses, over the channels that hold data."""
        channels = block.layers[0].norm1.num_features
        for i, layer in enumerate(block.layers):
            where = f"{path}.layers.{i}"
            if not layer.bottleneck:
                raise UserError(
                    f"{self.config.name} has dense layers without a bottleneck; their filters are not chosen"
                )
            inner = self.scratch(layer.conv1.out_channels, self.side(x))
            conv1, conv2 = f"{where}.conv1", f"{where}.conv2"
            self.conv(layer.conv1, layer.norm2, x, inner, "relu", path=conv1, before=layer.norm1)
            self.conv(layer.conv2, None, inner, x, path=conv2, out_offset=channels)
            channels += layer.conv2.out_channels

    def _plan_path_head(self, x: int, head: PathHead, first_gate: int) -> None:
        self.plan.add(
            "path_head",
            src=x,
            in_channels=self.channels(x),
            out_channels=head.classifier.out_features,
            out_offset=self.plan.logits,
            layers=head.path.in_features,
            first_gate=first_gate,
            weights=pack_path_head(self.packer, head),
        )
