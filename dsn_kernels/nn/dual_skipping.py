"""The twin of a whole dual skipping network: one operator from image to logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dsn_models.densenet import check_images
from dsn_models.dual_skipping import BRANCHES, resolve_thresholds
from dsn_models.errors import UserError

from .. import _C, ops
from ..ops.dense_block import dense_layer_macs
from ..ops.head import head_macs
from ..ops.network import Plan
from ..ops.preact_conv2d import preact_conv2d_macs
from .packing import Packer, pack_dense_block, pack_head, pack_stem, pack_transition, skippable_slices


class DualSkippingNetwork(nn.Module):
    """Same call and same outputs as `dsn_models.DualSkippingNetwork` in ``eval()``; computes only what the gates open.

    After each call ``last_gates``, ``last_scores`` and ``last_macs`` say what ran.

    Args:
        model: the reference network.

    Args of ``forward``:
        images: float32 [B, in_channels, image_size, image_size].
        forced_gates: ``{"coarse": uint8 [B, L], "fine": uint8 [B, L]}`` of 0 and 1, in place of the decisions.
        thresholds: a number for both branches, or one per branch by name; the configuration's if not given.

    Raises:
        UserError: images, forced gates or thresholds do not fit.
        RuntimeError: forced gates hold anything but 0 and 1.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.config = config = model.config
        self.stem = copy.deepcopy(model.stem) if config.stem == "imagenet" else None
        self.layers = {name: getattr(model, name).num_layers for name in BRANCHES}
        plan, packer = Plan(), Packer()
        side = config.image_size if config.stem == "conv3x3" else config.image_size // 4
        stem_channels = 2 * config.growth_rate
        shared = plan.buffer(max(_widest(getattr(model, name), 0) for name in BRANCHES), side, side)
        stem_weights = pack_stem(packer, model.stem) if config.stem == "conv3x3" else 0

        def fill_shared() -> None:
            if config.stem == "conv3x3":
                fields = {"in_channels": config.in_channels, "out_channels": stem_channels, "weights": stem_weights}
                plan.add("stem", dst=shared, **fields)
            else:
                plan.add("load", dst=shared, in_channels=stem_channels)

        buffers: dict[int, int] = {0: shared}  # a block's state; the branches take turns
        guide, guide_slices = -1, []
        first_gate = logits = 0
        for name in BRANCHES:
            branch = getattr(model, name)
            if name == BRANCHES[0] or config.merge == "add":  # an add block overwrites its input
                fill_shared()
            last = len(branch.blocks) - 1
            slices: list[range] = []
            for i, block in enumerate(branch.blocks):
                size = side >> i
                if i not in buffers or (i == last and guide >= 0):
                    buffers[i] = plan.buffer(max(_widest(getattr(model, n), i) for n in BRANCHES), size, size)
                if i > 0:
                    guided = i == last and guide >= 0
                    source = buffers[i - 1]
                    width = _width(branch.blocks[i - 1])
                    joined = slices + [range(s.start + width, s.stop + width) for s in guide_slices if guided]
                    plan.add(
                        "transition",
                        src=source,
                        dst=buffers[i],
                        in_channels=width,
                        out_channels=branch.transitions[i - 1].conv.out_channels,
                        weights=pack_transition(packer, branch.transitions[i - 1], joined),
                        guide=guide if guided else -1,
                    )
                plan.add("dense_block", dst=buffers[i], first_gate=first_gate, **pack_dense_block(packer, block))
                first_gate += len(block.layers)
                slices = skippable_slices(block)
            classes = branch.head.classifier.out_features
            weights = pack_head(packer, branch.head, slices)
            plan.add(
                "head",
                src=buffers[last],
                in_channels=_width(branch.blocks[last]),
                out_channels=classes,
                weights=weights,
                out_offset=logits,
            )
            logits += classes
            if config.guide and name == BRANCHES[0]:
                guide, guide_slices = buffers[last], slices
        self.plan = plan
        # Of a stem that torch runs; a 3x3 stem is part of the plan.
        self._stem_macs = 0 if self.stem is None else (config.image_size // 2) ** 2 * model.stem.conv.weight.numel()
        self._sizes = {"gates": plan.gates, "logits": plan.logits}
        self.register_buffer("plan_words", plan.words(), persistent=False)
        self.register_buffer("weights", packer.tensor())
        self.register_buffer("thresholds", self._per_layer(resolve_thresholds(None, config)), persistent=False)
        self._last = (torch.empty(0, plan.gates, dtype=torch.uint8), torch.empty(0, plan.gates), torch.empty(0).long())
        self.eval()
        self.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        forced_gates: Mapping[str, Tensor] | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        check_images(images, self.config.in_channels, self.config.image_size, torch.float32)
        if images.device != self.weights.device:
            raise UserError(f"images are on {images.device}; expected {self.weights.device}: move them or the model")
        limits = self.thresholds if thresholds is None else self._per_layer(resolve_thresholds(thresholds, self.config))
        forced = None if forced_gates is None else self._join(forced_gates, images.shape[0])
        x = images if self.stem is None else self.stem(images)
        logits, gates, scores, macs = ops.network(x, self.weights, limits, forced, self.plan_words, **self._sizes)
        if not torch.compiler.is_exporting():  # an exported program returns the logits alone
            self._last = (gates, scores, macs + self._stem_macs if self._stem_macs else macs)
        coarse = self.config.classes[0]
        return logits[:, :coarse], logits[:, coarse:]

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """What each layer did in the last call, uint8 [B, L] by branch: 1 = ran."""
        return self._split(self._last[0])

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """The gates' scores in the last call, float32 [B, L] by branch."""
        return self._split(self._last[1])

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates that the kernels counted while they ran the last call, int64 [B]."""
        return self._last[2]

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs executed for the given gates, by formula: int64 [B]. Equal to the kernels' own count.

        Counted: stem, gates, layers that run over channels that hold data, transitions after pooling, heads.

        Args:
            gates: ``{"coarse": [B, L], "fine": [B, L]}`` of 0 and 1.
        """
        joined = torch.cat([gates[name] for name in BRANCHES], 1).long()
        total = joined.new_full((joined.shape[0],), self._stem_macs)
        live: dict[int, Tensor] = {}
        for step in self.plan.code:
            pixels = {b: h * w for b, (_, h, w) in enumerate(self.plan.buffers)}
            if step.op == _C.OPS["stem"]:
                total += pixels[step.dst] * 9 * step.in_channels * step.out_channels
            elif step.op == _C.OPS["dense_block"]:
                channels = torch.full_like(total, step.in_channels)
                add = step.merge == _C.MERGES["add"]
                for layer in range(step.layers):
                    taken = joined[:, step.first_gate + layer]
                    width = step.in_channels + (0 if add else layer * step.out_channels)
                    gate, cost = dense_layer_macs(
                        pixels[step.dst],
                        channels,
                        width,
                        step.out_channels,
                        step.bottleneck,
                        "add" if add else "concat",
                    )
                    total += gate + taken * cost
                    if not add:
                        channels = channels + taken * step.out_channels
                live[step.dst] = channels
            elif step.op == _C.OPS["transition"]:
                inputs = live[step.src] + (live[step.guide] if step.guide >= 0 else 0)
                total += preact_conv2d_macs(pixels[step.dst], inputs, step.out_channels)
            elif step.op == _C.OPS["head"]:
                total += head_macs(live[step.src], step.out_channels)
        return total

    @property
    def dense_macs(self) -> int:
        """MACs of the same network without gates as a framework runs it: every layer, 1x1 before the pool."""
        total = self._stem_macs
        for step in self.plan.code:
            if step.op == _C.OPS["stem"]:  # an add network repeats it; the dense one does not
                _, height, width = self.plan.buffers[step.dst]
                total += height * width * 9 * step.in_channels * step.out_channels
                break
        for step in self.plan.code:
            if step.op == _C.OPS["dense_block"]:
                _, height, width = self.plan.buffers[step.dst]
                add = step.merge == _C.MERGES["add"]
                for layer in range(step.layers):
                    channels = step.in_channels + (0 if add else layer * step.out_channels)
                    total += int(
                        dense_layer_macs(
                            height * width,
                            torch.tensor(channels),
                            channels,
                            step.out_channels,
                            step.bottleneck,
                            "add" if add else "concat",
                        )[1]
                    )
            elif step.op == _C.OPS["transition"]:
                _, height, width = self.plan.buffers[step.src]
                guide = self.plan.buffers[step.guide][0] if step.guide >= 0 else 0
                total += height * width * (step.in_channels + guide) * step.out_channels
            elif step.op == _C.OPS["head"]:
                total += step.in_channels * step.out_channels
        return total

    def _per_layer(self, limits: Mapping[str, float]) -> Tensor:
        return torch.cat([torch.full((self.layers[name],), float(limits[name])) for name in BRANCHES])

    def _split(self, joined: Tensor) -> dict[str, Tensor]:
        parts = joined.split([self.layers[name] for name in BRANCHES], 1)
        return dict(zip(BRANCHES, parts, strict=True))

    def _join(self, forced_gates: Mapping[str, Tensor], batch: int) -> Tensor:
        if not isinstance(forced_gates, Mapping) or set(forced_gates) != set(BRANCHES):
            given = sorted(forced_gates) if isinstance(forced_gates, Mapping) else type(forced_gates).__name__
            raise UserError(f"forced_gates is {given}; expected a mapping with 'coarse' and 'fine'")
        for name in BRANCHES:
            gates, expected = forced_gates[name], [batch, self.layers[name]]
            if not isinstance(gates, Tensor) or gates.dtype != torch.uint8 or list(gates.shape) != expected:
                given = f"{gates.dtype} {list(gates.shape)}" if isinstance(gates, Tensor) else type(gates).__name__
                raise UserError(f"forced_gates['{name}'] is {given}; expected torch.uint8 {expected}")
        return torch.cat([forced_gates[name] for name in BRANCHES], 1)


def _width(block: nn.Module) -> int:
    """Channels of a block's output."""
    slices = skippable_slices(block)
    return slices[-1].stop if slices else block.layers[0].norm1.num_features


def _widest(branch: nn.Module, index: int) -> int:
    return _width(branch.blocks[index])
