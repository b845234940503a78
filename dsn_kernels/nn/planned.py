"""Twins that are one operator from image to logits: residual networks, SkipNet, GaterNet, GUNN."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dsn_models.densenet import Head, check_images
from dsn_models.errors import UserError
from dsn_models.gaternet import FILTERS, Gater, resolve_threshold
from dsn_models.gaternet import GaterNet as ReferenceGaterNet
from dsn_models.gates import ForcedGates, resolve_forced_gates
from dsn_models.gradually_updated import GraduallyUpdatedNetwork as ReferenceGunn
from dsn_models.resnet import ResNet as ReferenceResNet
from dsn_models.skipnet import SkipNet as ReferenceSkipNet
from dsn_models.skipnet import resolve_thresholds

from .. import ops
from ..ops.network import Plan
from .described import Described
from .gradual_planning import plan_gradual
from .packing import fold
from .residual_planning import plan_residual


@dataclass(frozen=True)
class Target:
    """What a twin runs on.

    Attributes:
        backend: ``"cpu"``, ``"cuda"`` or ``"simt"``, the host runner of csrc/simt.
        dtype: of weights and activations; on the CPU float32.
        graph: replay the launches as CUDA graphs: True, or the batch sizes to capture.
    """

    backend: str = "cpu"
    dtype: torch.dtype = torch.float32
    graph: bool | Sequence[int] = False


CPU = Target()


class _Planned(nn.Module):
    """A plan and its packed weights behind torch's own stem, if that is more than a 3x3 convolution."""

    weights: Tensor
    plan_words: Tensor

    def __init__(
        self, model: Any, make_plan: Callable[..., tuple[Plan, Tensor]], target: Target, **options: Any
    ) -> None:
        super().__init__()
        config = model.config
        self.stem, side, self.stem_macs = None, config.image_size, 0
        if config.stem == "imagenet":
            stem = model.stem[:-3] if isinstance(model, ReferenceGunn) else model.stem  # the plan has its last 1x1
            self.stem = copy.deepcopy(stem).eval()
            side = self.stem(torch.zeros(1, config.in_channels, side, side)).shape[-1]
            self.stem_macs = count_macs(self.stem, config)
            self.stem.to(target.dtype)
        self.target = target
        self.plan, weights = make_plan(model, side, **options)
        if target.backend == "cpu":
            self._sizes = {"gates": self.plan.gates, "logits": self.plan.logits}
            self.register_buffer("weights", weights)
            self.register_buffer("plan_words", self.plan.words(), persistent=False)
        else:
            from .gpu import PlanRunner, make_graphs

            self.runner = PlanRunner(self.plan, weights, target.dtype, target.backend)
            self._graphs = make_graphs(self.runner, target.graph)

    def forward(
        self, images: Tensor, thresholds: Tensor, forced: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = images if self.stem is None else self.stem(images.to(self.target.dtype))
        if self.target.backend != "cpu":
            out = (self._graphs or self.runner)(x, thresholds, forced)
            return out.logits, out.gates, out.scores, out.macs
        return ops.network(x, self.weights, thresholds, forced, self.plan_words, **self._sizes)


def count_macs(model: nn.Module, config: Any) -> int:
    """Multiply-accumulates of a module for one image of the configuration's size, counted by torch."""
    shape = (1, config.in_channels, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval().to("meta")(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


class PlannedTwin(Described, nn.Module):
    """Same call and same outputs as the reference network in ``eval()``; computes only what the gates select.

    After each call ``last_gates`` and ``last_scores`` hold what the reference's hold, ``last_macs`` the MACs that the
    kernels counted, int64 [B].

    Raises:
        UserError: images, forced gates or thresholds do not fit.
    """

    thresholds: Tensor

    def __init__(self, model: Any, target: Target) -> None:
        super().__init__()
        self.config, self.target = model.config, target
        self.layers: dict[str, int] = dict(getattr(model, "gate_counts", {}))
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.dense_macs = count_macs(getattr(model, "dense_equivalent", lambda: model)(), model.config)
        self._last: tuple[Tensor, Tensor, Tensor] | None = None
        self.eval()

    def _finish(self) -> None:
        self.eval()
        self.requires_grad_(False)

    def _check(self, images: Tensor) -> None:
        dtype = images.dtype if isinstance(images, Tensor) and images.dtype == self.target.dtype else torch.float32
        check_images(images, self.config.in_channels, self.config.image_size, dtype)
        expected = self.thresholds.device
        if images.device != expected:
            where = "them" if expected.type == "cpu" else "them or the model"
            raise UserError(f"images are on {images.device}; expected {expected}: move {where}")

    def _keep(self, gates: Tensor, scores: Tensor, macs: Tensor) -> None:
        if not torch.compiler.is_exporting():
            self._last = (gates, scores, macs)

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """What each gate did in the last call, uint8 [B, L] by the reference's key: 1 = open."""
        return {} if self._last is None else {name: self._last[0] for name in self.layers}

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """The gates' scores in the last call, float32 [B, L]."""
        return {} if self._last is None else {name: self._last[1] for name in self.layers}

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates of the last call, counted by the kernels while they ran, int64 [B]."""
        return torch.empty(0, dtype=torch.int64) if self._last is None else self._last[2]

    def _forced(self, forced_gates: ForcedGates | None, batch: int) -> Tensor | None:
        return next(iter(resolve_forced_gates(forced_gates, batch, self.layers).values()), None)


class _Dense(PlannedTwin):
    """No gates, everything runs. ``forward(images)``: float32 images to logits [B, classes]."""

    def __init__(self, model: Any, make_plan: Callable[..., tuple[Plan, Tensor]], target: Target) -> None:
        super().__init__(model, target)
        self.network = _Planned(model, make_plan, target)
        self.register_buffer("thresholds", torch.empty(0), persistent=False)
        self._finish()

    def forward(self, images: Tensor) -> Tensor:
        self._check(images)
        logits, gates, scores, macs = self.network(images, self.thresholds, None)
        self._keep(gates, scores, macs + self.network.stem_macs)
        return logits

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs executed, by formula; no gate is read: int64 [1]."""
        return self.network.plan.macs(torch.empty(1, 0, dtype=torch.uint8)) + self.network.stem_macs


class ResNet(_Dense):
    """`dsn_models.ResNet`: every unit runs."""

    def __init__(self, model: ReferenceResNet, target: Target = CPU) -> None:
        super().__init__(model, plan_residual, target)


class GraduallyUpdatedNetwork(_Dense):
    """`dsn_models.GraduallyUpdatedNetwork`, GUNN or SUNN, with segments of any size."""

    def __init__(self, model: ReferenceGunn, target: Target = CPU) -> None:
        super().__init__(model, plan_gradual, target)


class SkipNet(PlannedTwin):
    """`dsn_models.SkipNet`: a bypassed unit costs its gate and nothing else.

    ``forward(images, forced_gates=None, thresholds=None)`` as the reference's.
    """

    def __init__(self, model: ReferenceSkipNet, target: Target = CPU) -> None:
        super().__init__(model, target)
        self.network = _Planned(model, plan_residual, target)
        limits = torch.tensor(resolve_thresholds(None, model.config), dtype=torch.float32)
        self.register_buffer("thresholds", limits, persistent=False)
        self._finish()

    def forward(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> Tensor:
        self._check(images)
        limits = self.thresholds
        if thresholds is not None:
            limits = limits.new_tensor(resolve_thresholds(thresholds, self.config))
        logits, gates, scores, macs = self.network(images, limits, self._forced(forced_gates, len(images)))
        self._keep(gates, scores, macs + self.network.stem_macs)
        return logits

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs executed for ``{"units": [B, L]}`` of 0 and 1, by formula: int64 [B]. Equal to ``last_macs``."""
        return self.network.plan.macs(next(iter(gates.values()))) + self.network.stem_macs


def _with_first_linear(gater: Gater) -> ReferenceResNet:
    """The gater's features and, in place of a classifier, its first linear map with the batch norm behind it."""
    scale, shift = fold(gater.norm)
    linear = nn.Linear(gater.fc1.in_features, gater.fc1.out_features, dtype=torch.float64)
    linear.weight.data = gater.fc1.weight.double() * scale[:, None]
    linear.bias.data = gater.fc1.bias.double() * scale + shift
    features = copy.deepcopy(gater.features)
    if isinstance(features.head, Head):
        features.head.classifier = linear
    else:
        features.head[-1] = linear  # type: ignore[index, operator]
    return features


class GaterNet(PlannedTwin):
    """`dsn_models.GaterNet` with a residual backbone: the gater runs first, then only the filters it chose.

    A filter that is off costs no MACs, nor does an input channel that a mask left dead.
    ``forward(images, forced_gates=None, thresholds=None)`` as the reference's.
    """

    def __init__(self, model: ReferenceGaterNet, target: Target = CPU) -> None:
        if not isinstance(model.backbone, ReferenceResNet):
            raise UserError(
                f"{model.config.name} has a {type(model.backbone).__name__} backbone; only residual ones are served"
            )
        super().__init__(model, target)
        masks = {conv.conv: conv.gates.start for point in model.gate_points for conv in point.convolutions}
        self.gater = _Planned(_with_first_linear(model.gater), plan_residual, target)
        self.backbone = _Planned(model.backbone, plan_residual, target, masks=masks)
        self.fc2 = copy.deepcopy(model.gater.fc2)
        limits = torch.full((model.num_gates,), float(model.config.threshold))
        self.register_buffer("thresholds", limits, persistent=False)
        self._fixed_macs = self.fc2.weight.numel() + self.gater.stem_macs + self.backbone.stem_macs
        self._finish()

    def forward(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> Tensor:
        self._check(images)
        limits = self.thresholds
        if thresholds is not None:
            limits = torch.full_like(limits, float(resolve_threshold(thresholds, self.config)))
        narrow, _, _, gater_macs = self.gater(images, self.thresholds[:0], None)
        scores = self.fc2(F.relu(narrow))
        forced = self._forced(forced_gates, len(images))
        mask = (scores - limits > 0).to(torch.uint8) if forced is None else forced
        logits, gates, _, macs = self.backbone(images, torch.zeros_like(limits), mask)
        self._keep(gates, scores, macs + gater_macs + self._fixed_macs)
        return logits

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs executed for ``{"filters": [B, c]}`` of 0 and 1, gater included, by formula: int64 [B]."""
        none = torch.empty(1, 0, dtype=torch.uint8)
        return self.backbone.plan.macs(gates[FILTERS]) + self.gater.plan.macs(none) + self._fixed_macs
