"""The twin of a whole dual skipping network: one operator from image to logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dsn_models.densenet import check_images
from dsn_models.dual_skipping import BRANCHES, resolve_thresholds
from dsn_models.dual_skipping import DualSkippingNetwork as Reference
from dsn_models.errors import UserError

from .. import ops
from .described import Described
from .planning import plan_dual_skipping


class DualSkippingNetwork(Described, nn.Module):
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

    weights: Tensor
    thresholds: Tensor
    plan_words: Tensor

    def __init__(self, model: Reference) -> None:
        super().__init__()
        self.config = model.config
        self.layers: dict[str, int] = {name: getattr(model, name).num_layers for name in BRANCHES}
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.plan, weights = plan_dual_skipping(model)
        # The plan begins behind a stem that is more than one 3x3 convolution; torch runs that.
        self.stem = copy.deepcopy(model.stem) if isinstance(model.stem, nn.Sequential) else None
        self._stem_macs = (self.config.image_size // 2) ** 2 * next(self.stem.parameters()).numel() if self.stem else 0
        self._sizes = {"gates": self.plan.gates, "logits": self.plan.logits}
        self.register_buffer("weights", weights)
        self.register_buffer("plan_words", self.plan.words(), persistent=False)
        limits = self._per_layer(resolve_thresholds(None, self.config), torch.device("cpu"))
        self.register_buffer("thresholds", limits, persistent=False)
        # Gates, scores and MACs of the last call.
        self._last = (torch.empty(0, self.plan.gates).byte(), torch.empty(0, self.plan.gates), torch.empty(0).long())
        self.eval()
        self.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        forced_gates: Mapping[str, Tensor] | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        self._check(images)
        limits = self.thresholds
        if thresholds is not None:
            limits = self._per_layer(resolve_thresholds(thresholds, self.config), limits.device)
        forced = None if forced_gates is None else self._join(forced_gates, images.shape[0])
        x = images if self.stem is None else self.stem(images)
        logits, gates, scores, macs = self._run(x, limits, forced)
        if not torch.compiler.is_exporting():  # an exported program returns the logits alone
            self._last = (gates, scores, macs)
        coarse, fine = logits.split(self.config.classes, 1)
        return coarse, fine

    def _check(self, images: Tensor) -> None:
        check_images(images, self.config.in_channels, self.config.image_size, torch.float32)
        if images.device != self.thresholds.device:
            raise UserError(f"images are on {images.device}; expected {self.thresholds.device}: move them or the model")

    def _run(self, x: Tensor, limits: Tensor, forced: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, gates, scores and MACs of the plan for the stem's output, or for the images."""
        return ops.network(x, self.weights, limits, forced, self.plan_words, **self._sizes)

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
        """Multiply-accumulates of the last call, counted by the kernels while they ran, int64 [B]."""
        return self._last[2] + self._stem_macs

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs executed for ``{"coarse": [B, L], "fine": [B, L]}`` of 0 and 1, by formula: int64 [B].

        Equal to ``last_macs``; see :meth:`dsn_kernels.ops.network.Plan.macs` for what is counted.
        """
        return self.plan.macs(torch.cat([gates[name] for name in BRANCHES], 1)) + self._stem_macs

    @property
    def dense_macs(self) -> int:
        """MACs of the same network without gates as a framework runs it, per image."""
        return self.plan.dense_macs() + self._stem_macs

    def _per_layer(self, limits: Mapping[str, float], device: torch.device) -> Tensor:
        return torch.cat([torch.full((self.layers[name],), float(limits[name]), device=device) for name in BRANCHES])

    def _split(self, joined: Tensor) -> dict[str, Tensor]:
        parts = joined.split([self.layers[name] for name in BRANCHES], 1)
        return dict(zip(BRANCHES, parts, strict=True))

    def _join(self, forced_gates: Mapping[str, Tensor], batch: int) -> Tensor:
        if not isinstance(forced_gates, Mapping) or set(forced_gates) != set(BRANCHES):
            given = str(sorted(forced_gates)) if isinstance(forced_gates, Mapping) else type(forced_gates).__name__
            raise UserError(f"forced_gates is {given}; expected a mapping with 'coarse' and 'fine'")
        for name in BRANCHES:
            gates, expected = forced_gates[name], [batch, self.layers[name]]
            if not isinstance(gates, Tensor) or gates.dtype != torch.uint8 or list(gates.shape) != expected:
                given = f"{gates.dtype} {list(gates.shape)}" if isinstance(gates, Tensor) else type(gates).__name__
                raise UserError(f"forced_gates['{name}'] is {given}; expected torch.uint8 {expected}")
        return torch.cat([forced_gates[name] for name in BRANCHES], 1)
