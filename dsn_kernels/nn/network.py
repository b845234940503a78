"""The twin of a whole network, whatever its family: one operator from image to logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsn_models.densenet import DenseNet, Head, check_images
from dsn_models.described import card
from dsn_models.dual_skipping import DualSkippingNetwork, resolve_thresholds
from dsn_models.errors import UserError
from dsn_models.gaternet import FILTERS, Gater, GaterNet
from dsn_models.gaternet import resolve_threshold as resolve_filter_threshold
from dsn_models.gates import ForcedGates
from dsn_models.gradually_updated import GraduallyUpdatedNetwork
from dsn_models.inception import InceptionV4
from dsn_models.layer_skippable import LayerSkippableNetwork
from dsn_models.lenet import LeNet
from dsn_models.macs import count_macs
from dsn_models.resnet import ResNet
from dsn_models.shake_shake import ShakeShake
from dsn_models.skipnet import SkipNet
from dsn_models.skipnet import resolve_thresholds as resolve_unit_thresholds

from .. import ops
from ..ops.inference import refuse_gradients
from ..ops.network import Plan
from .canonical import canonical
from .gpu import check_forced, make_graphs
from .gradual_planning import plan_gradual
from .inception_planning import plan_inception
from .lenet_planning import plan_lenet
from .packing import fold, folded_conv
from .plan_builder import Masks
from .plan_runner import make_runner
from .planning import plan_dense
from .residual_planning import plan_residual
from .shake_planning import plan_shake

Thresholds = float | Mapping[str, float]
Planner = Callable[..., tuple[Plan, Tensor]]

# Of a network without a gater: from the module and the side of the maps that enter the plan to the plan.
PLANNERS: dict[type[nn.Module], Planner] = {
    DualSkippingNetwork: plan_dense,
    LayerSkippableNetwork: plan_dense,
    DenseNet: plan_dense,
    ResNet: plan_residual,
    SkipNet: plan_residual,
    GraduallyUpdatedNetwork: plan_gradual,
    ShakeShake: plan_shake,
    InceptionV4: plan_inception,
    LeNet: plan_lenet,
}
NETWORKS = (*PLANNERS, GaterNet)


@dataclass(frozen=True)
class Target:
    """What a twin runs on.

    Attributes:
        backend: ``"cpu"``, or one of `plan_runner.RUNNERS`: ``"cuda"``, ``"triton"``.
        dtype: of weights and activations. On the CPU float32, or bfloat16: of the products of convolutions alone.
        graph: replay the launches as CUDA graphs: True, or the batch sizes to capture.
    """

    backend: str = "cpu"
    dtype: torch.dtype = torch.float32
    graph: bool | Sequence[int] = False

    @property
    def map_dtype(self) -> torch.dtype:
        """Of the maps between the parts of a network, and of what enters its plan."""
        return torch.float32 if self.backend == "cpu" else self.dtype


CPU = Target()


class Planned(nn.Module):
    """A plan and its packed weights, behind torch's own stem where that is more than a 3x3 convolution."""

    weights: Tensor
    plan_words: Tensor

    def __init__(self, model: Any, target: Target, masks: Masks | None = None) -> None:
        super().__init__()
        self.target = target
        self.stem, side, self.stem_macs = _take_stem(model, target)
        self.plan, weights = _plan(model, side, target, masks)
        if target.backend == "cpu":
            self.sizes = ops.plan_sizes(self.plan)
            self.register_buffer("weights", weights)
            self.register_buffer("plan_words", self.plan.words(), persistent=False)
        else:
            self.runner = make_runner(self.plan, weights, target.dtype, target.backend)
            self._graphs = make_graphs(self.runner, target.graph)

    def _run(self, images: Tensor, limits: Tensor, forced: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, gates, scores and MACs."""
        refuse_gradients(images)
        x = images if self.stem is None else self.stem(images.to(self.target.map_dtype))
        if self.target.backend != "cpu":
            out = (self._graphs or self.runner)(x, limits, forced)
            return out.logits, out.gates, out.scores, out.macs
        logits, _, gates, scores, macs, _ = ops.run_plan(
            x.float(), self.weights, limits, forced, self.plan_words, **self.sizes
        )
        return logits, gates, scores, macs


def _take_stem(model: Any, target: Target) -> tuple[nn.Module | None, int, int]:
    """What torch runs in front of a plan, the side of the maps that enter the plan, and the MACs until then."""
    config = model.config
    if getattr(config, "stem", None) != "imagenet":
        return None, config.image_size, 0
    # A gradually updated network's plan has the rest of its stem.
    stem: Any = model.stem[0] if isinstance(model, GraduallyUpdatedNetwork) else model.stem
    stem = copy.deepcopy(stem).eval()
    shape = (1, config.in_channels, config.image_size, config.image_size)
    image = torch.zeros(shape, dtype=torch.float32, device="meta")
    side = copy.deepcopy(stem).to("meta")(image).shape[-1]
    # torch's max pool on the CPU takes a tenth of the time channels last.
    layout = torch.channels_last if target.backend == "cpu" else torch.preserve_format
    folded: Any = _folded_stem(stem)
    return folded.to(dtype=target.map_dtype, memory_format=layout), side, count_macs(stem, config)


def _plan(model: nn.Module, side: int, target: Target, masks: Masks | None = None) -> tuple[Plan, Tensor]:
    options: dict[str, Any] = {} if masks is None else {"masks": masks}
    if target.backend == "cpu" and target.dtype == torch.bfloat16:
        options["bfloat16"] = True
    if target.backend == "cpu" and isinstance(model, GraduallyUpdatedNetwork):
        options["in_groups"] = True  # a GPU keeps a layer's state on the chip, and each product reads it there
    return PLANNERS[type(model)](model, side, **options)


def _folded_stem(stem: Any) -> nn.Module:
    """An ImageNet stem with its batch norm folded into the convolution, and the maximum before the ReLU, which sees a
    quarter of the pixels then."""
    conv = copy.deepcopy(stem.conv)
    weight, bias = (x.detach().to(conv.weight.dtype) for x in folded_conv(stem.conv, stem.norm))
    conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return nn.Sequential(conv, stem.pool, nn.ReLU(inplace=True))


def plan_network(model: nn.Module) -> tuple[Plan, Tensor]:
    """The plan of a network without a gater, for its images' size, as a GPU runs it, and the weights it names, float32,
    packed as on the CPU.

    Raises:
        KeyError: of any other module.
    """
    target, model = Target("cuda"), canonical(model)
    return _plan(model, _take_stem(model, target)[1], target)


class Chooser(Planned):
    """A GaterNet's gater. ``forward``: images to the filters' scores [B, c] and the MACs of the plan, int64 [B]."""

    limits: Tensor

    def __init__(self, gater: Gater, target: Target) -> None:
        # Filters are chosen in float32 on the CPU.
        super().__init__(_with_first_linear(gater), CPU if target.backend == "cpu" else target)
        self.fc2 = copy.deepcopy(gater.fc2)
        self.register_buffer("limits", torch.empty(0, dtype=torch.float32), persistent=False)
        self.macs = int(self.plan.macs(torch.empty(1, 0))) + self.stem_macs + self.fc2.weight.numel()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc2(F.relu(self._run(images, self.limits, None)[0]))


def _with_first_linear(gater: Gater) -> ResNet:
    """The gater's features and, in place of a classifier, its first linear map with the batch norm behind it."""
    scale, shift = fold(gater.norm)
    linear = nn.Linear(gater.fc1.in_features, gater.fc1.out_features, dtype=torch.float64)
    linear.weight.data = gater.fc1.weight.double() * scale[:, None]
    linear.bias.data = gater.fc1.bias.double() * scale + shift
    features = copy.deepcopy(gater.features)
    if isinstance(features.head, Head):
        features.head.classifier = linear
    else:
        classifiers: Any = features.head
        classifiers[-1] = linear
    return features


def _masks(model: GaterNet) -> dict[str, int]:
    """First gate of each gated convolution, by its path in the backbone, and of each gated module's output."""
    masks = {point.module: point.gates.start for point in model.gate_points}
    return masks | {conv.conv: conv.gates.start for point in model.gate_points for conv in point.convolutions}


class Result(NamedTuple):
    """What a call of a :class:`Network` computed and did.

    Attributes:
        outputs: as the reference's: logits [B, classes], or a tuple of them.
        gates: what each gate did, uint8 [B, L] by name: 1 = open.
        scores: the gates' scores, float32 [B, L] by name.
        macs: multiply-accumulates, counted by the kernels while they ran, int64 [B].
    """

    outputs: Tensor | tuple[Tensor, ...]
    gates: dict[str, Tensor]
    scores: dict[str, Tensor]
    macs: Tensor


class Network(Planned):
    """Same call and same outputs as the reference network in ``eval()``; computes only what the gates select.

    It stands for any network of `dsn_models`. After each call ``last_gates`` and ``last_scores`` hold what the
    reference's hold, and ``last_macs`` what the kernels counted. Of a GaterNet the gater runs first, then only the
    filters that it chose; a filter that is off costs no MACs, nor does a channel that a mask left without data.

    Args:
        model: the reference network.
        target: what it runs on.

    Args of ``forward``:
        images: [B, in_channels, image_size, image_size], float32 or of the target's dtype.
        forced_gates: ``{name: uint8 [B, L]}`` of 0 and 1 for each name in ``layers``, in place of the decisions.
        thresholds: a number, or one for each name; the configuration's if not given.

    Raises:
        UserError: images, forced gates or thresholds do not fit or lie on another device; on a GPU also: forced gates
            hold anything but 0 and 1 (the host waits to see, unless the call is compiled or captured), a batch is
            larger than the captured sizes, or a graph cannot be captured.
        RuntimeError: forced gates hold anything but 0 and 1, on the CPU.
    """

    thresholds: Tensor
    _plan_limits: Tensor

    def __init__(self, model: Any, target: Target = CPU) -> None:
        given, model = model, canonical(model)
        backbone = model.backbone if isinstance(model, GaterNet) else model
        super().__init__(backbone, target, _masks(model) if isinstance(model, GaterNet) else None)
        self.config = model.config
        self.family = type(model)
        self.num_parameters = sum(parameter.numel() for parameter in given.parameters())
        self.reference_dtype = next(given.parameters()).dtype  # of the images that it takes
        self.layers: dict[str, int] = dict(getattr(model, "gate_counts", {}))
        self.gater = Chooser(model.gater, target) if isinstance(model, GaterNet) else None
        limits = self._per_gate(None)
        self.register_buffer("thresholds", limits, persistent=False)
        # A gater's decisions reach the plan as forced gates; layers that are not gated run whatever this says.
        self.register_buffer("_plan_limits", torch.full((self.plan.gates,), 0.5, dtype=torch.float32), persistent=False)
        # Gates, scores and MACs of the last call.
        self._last = (limits.new_empty(0, len(limits)).byte(), limits.new_empty(0, len(limits)), torch.empty(0).long())
        # In a tuple, since it is no part of this module.
        self._without_weights = (model.to("meta"),)
        self.eval()
        self.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: Thresholds | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        outputs, last = self._call(images, forced_gates, thresholds)
        if not torch.compiler.is_exporting():  # an exported program returns the logits alone
            self._last = last
        return outputs

    def run(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: Thresholds | None = None,
    ) -> Result:
        """As a call, with what that call did beside its outputs: for threads that share the network.

        Leaves ``last_gates``, ``last_scores`` and ``last_macs`` as they are.
        """
        outputs, (gates, scores, macs) = self._call(images, forced_gates, thresholds)
        return Result(outputs, self._split(gates), self._split(scores), macs + self._other_macs)

    def _call(
        self, images: Tensor, forced_gates: ForcedGates | None, thresholds: Thresholds | None
    ) -> tuple[Tensor | tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """The outputs; gates, scores and MACs."""
        self._check(images)
        images = images if images.dtype == self.target.dtype else images.float()
        limits = self.thresholds if thresholds is None else self._per_gate(thresholds).to(self.thresholds.device)
        forced = None if forced_gates is None else self._join(forced_gates, images.shape[0])
        chosen = None
        if self.gater is not None:
            chosen = self.gater(images)
            forced = (chosen - limits > 0).to(torch.uint8) if forced is None else forced
        gated = self.gater is None and len(self.layers) > 0
        logits, gates, scores, macs = self._run(images, limits if gated else self._plan_limits, forced)
        classes = self.config.classes
        outputs = logits.split(classes, 1) if isinstance(classes, tuple) else logits
        return outputs, (gates, scores if chosen is None else chosen, macs)

    def _check(self, images: Tensor) -> None:
        own = isinstance(images, Tensor) and images.dtype in (self.target.dtype, self.reference_dtype)
        dtype = images.dtype if own else torch.float32
        check_images(images, self.config.in_channels, self.config.image_size, dtype)
        if images.device != self.thresholds.device:
            raise UserError(f"images are on {images.device}; expected {self.thresholds.device}: move them or the model")

    def _repr_html_(self) -> str:
        """How a notebook shows it: what it is and what its last call did."""
        limits = [part.tolist() for part in self.thresholds.split(list(self.layers.values()))]
        title = f"{self.config.name}, accelerated"
        facts = (self.num_parameters, self.dense_macs, self.last_macs)
        return card(title, self.layers, limits, self.last_gates, *facts)

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """What each gate did in the last call, uint8 [B, L] by name: 1 = open."""
        return self._split(self._last[0])

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """The gates' scores in the last call, float32 [B, L] by name."""
        return self._split(self._last[1])

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates of the last call, counted by the kernels while they ran, int64 [B]."""
        return self._last[2] + self._other_macs

    @cached_property
    def dense_macs(self) -> int:
        """MACs per image of the network without gates, by torch's counter; counted when first asked for."""
        (model,) = self._without_weights
        return count_macs(getattr(model, "dense_equivalent", lambda: model)(), self.config)

    @property
    def parts(self) -> dict[str, Planned]:
        """What holds a plan, in the order in which it runs: this alone, or the gater and this, the backbone."""
        return {"": self} if self.gater is None else {"gater": self.gater, "backbone": self}

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs executed for ``{name: [B, L]}`` of 0 and 1, a gater included, by formula: int64 [B].

        Equal to ``last_macs``; see :meth:`dsn_kernels.ops.network.Plan.macs` for what is counted. Without gates, [1].
        """
        joined = torch.cat([gates[name] for name in self.layers], 1) if self.layers else torch.empty(1, 0)
        return self.plan.macs(joined) + self._other_macs

    @property
    def _other_macs(self) -> int:
        return self.stem_macs + (0 if self.gater is None else self.gater.macs)

    def _per_gate(self, thresholds: Thresholds | None) -> Tensor:
        """The thresholds of all gates, one branch after the other."""
        if self.family is SkipNet:
            return torch.tensor(resolve_unit_thresholds(thresholds, self.config), dtype=torch.float32)
        limits: Mapping[str, float] = {}
        if issubclass(self.family, DualSkippingNetwork):
            limits = resolve_thresholds(thresholds, self.config)
        elif self.family is GaterNet:
            limits = {FILTERS: resolve_filter_threshold(thresholds, self.config)}
        elif thresholds is not None:
            raise UserError(f"thresholds are for networks whose gates have them; {self.config.name} has none")
        parts = [torch.full((count,), float(limits[name]), dtype=torch.float32) for name, count in self.layers.items()]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float32)

    def _split(self, joined: Tensor) -> dict[str, Tensor]:
        parts = joined[:, : sum(self.layers.values())].split(list(self.layers.values()), 1) if self.layers else []
        return dict(zip(self.layers, parts, strict=True))

    def _join(self, forced_gates: ForcedGates, batch: int) -> Tensor | None:
        names = " and ".join(repr(name) for name in self.layers) or "nothing: the network has no gates"
        if not isinstance(forced_gates, Mapping) or set(forced_gates) != set(self.layers):
            given = str(sorted(forced_gates)) if isinstance(forced_gates, Mapping) else type(forced_gates).__name__
            raise UserError(f"forced_gates is {given}; expected a mapping with {names}")
        for name, count in self.layers.items():
            gates, expected = forced_gates[name], [batch, count]
            if not isinstance(gates, Tensor) or gates.dtype != torch.uint8 or list(gates.shape) != expected:
                given = f"{gates.dtype} {list(gates.shape)}" if isinstance(gates, Tensor) else type(gates).__name__
                raise UserError(f"forced_gates['{name}'] is {given}; expected torch.uint8 {expected}")
            if gates.device != self.thresholds.device:
                where = f"{gates.device}; expected {self.thresholds.device}"
                raise UserError(f"forced_gates['{name}'] is on {where}: move it or the model")
        if not self.layers:
            return None
        forced = torch.cat([forced_gates[name] for name in self.layers], 1)
        if self.target.backend != "cpu":
            check_forced(forced)
        return forced
