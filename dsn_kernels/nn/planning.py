"""A dual skipping network as a plan of the native runtime."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsn_models.dual_skipping import BRANCHES, Branch
from dsn_models.dual_skipping import DualSkippingNetwork as Reference

from ..ops.network import Plan
from .packing import Packer, block_width, pack_dense_block, pack_head, pack_stem, pack_transition, skippable_slices


def plan_dual_skipping(model: Reference) -> tuple[Plan, Tensor]:
    """The plan of ``model`` and the packed weights it names, float32.

    Each branch has its own buffers and, from the stem on, shares nothing with the other but the guide, so that two
    threads may walk them side by side.
    """
    return _Planner(model).plan_network()


class _Planner:
    def __init__(self, model: Reference) -> None:
        self.model, self.config = model, model.config
        self.plan, self.packer = Plan(), Packer()
        self.side = self.config.image_size if self.config.stem == "conv3x3" else self.config.image_size // 4
        self.stem_weights = pack_stem(self.packer, model.stem) if isinstance(model.stem, nn.Conv2d) else 0
        self.buffers: list[int] = []
        self.guide, self.guide_slices = -1, list[range]()

    def plan_network(self) -> tuple[Plan, Tensor]:
        for name in BRANCHES:
            branch: Branch = getattr(self.model, name)
            blocks: list[Any] = list(branch.blocks)
            sides = (self.side >> i for i in range(len(blocks)))
            self.buffers = [
                self.plan.buffer(block_width(block), side, side) for block, side in zip(blocks, sides, strict=True)
            ]
            self._fill_first_buffer()
            slices = self._plan_branch(branch)
            if self.config.guide and name == BRANCHES[0]:
                self.guide, self.guide_slices = self.buffers[-1], slices
        return self.plan, self.packer.tensor()

    def _fill_first_buffer(self) -> None:
        stem_channels = 2 * self.config.growth_rate
        if self.config.stem == "conv3x3":
            self.plan.add(
                "stem",
                dst=self.buffers[0],
                in_channels=self.config.in_channels,
                out_channels=stem_channels,
                weights=self.stem_weights,
            )
        else:
            self.plan.add("load", dst=self.buffers[0], in_channels=stem_channels)

    def _plan_branch(self, branch: Branch) -> list[range]:
        """Appends a branch; returns the skippable slices of its last block."""
        slices: list[range] = []
        blocks: list[Any] = list(branch.blocks)
        for i, block in enumerate(blocks):
            if i > 0:
                self._plan_transition(branch, i, slices)
            first_gate = self.plan.gates
            self.plan.add(
                "dense_block", dst=self.buffers[i], first_gate=first_gate, **pack_dense_block(self.packer, block)
            )
            slices = skippable_slices(block)
        self.plan.add(
            "head",
            src=self.buffers[-1],
            in_channels=branch.channels,
            out_channels=branch.head.classifier.out_features,
            out_offset=self.plan.logits,
            weights=pack_head(self.packer, branch.head, slices),
        )
        return slices

    def _plan_transition(self, branch: Branch, i: int, slices: list[range]) -> None:
        before: Any = branch.blocks[i - 1]
        transition: Any = branch.transitions[i - 1]
        width = block_width(before)
        guide = self.guide if i == len(branch.blocks) - 1 else -1
        if guide >= 0:  # its channels follow the branch's own
            slices = slices + [range(s.start + width, s.stop + width) for s in self.guide_slices]
        self.plan.add(
            "transition",
            src=self.buffers[i - 1],
            dst=self.buffers[i],
            in_channels=width,
            out_channels=transition.conv.out_channels,
            guide=guide,
            weights=pack_transition(self.packer, transition, slices),
        )
