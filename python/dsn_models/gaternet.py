"""GaterNet (Chen et al., https://arxiv.org/abs/1811.11205): one network chooses, per image, the filters of another."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import densenet, inception, resnet, shake_shake
from .described import Described
from .distributed import own_rows, world_size
from .errors import UserError
from .functional import choose_filters
from .gates import ForcedGates, SemHash, check_keys, resolve_forced_gates

Gated = Literal["last", "all"]
FILTERS = "filters"  # the key of ``last_gates``, ``last_scores`` and ``forced_gates``
_MODULES: dict[type, type[nn.Module]] = {
    resnet.ResNetConfig: resnet.ResNet,
    densenet.DenseNetConfig: densenet.DenseNet,
    shake_shake.ShakeShakeConfig: shake_shake.ShakeShake,
    inception.InceptionConfig: inception.InceptionV4,
}
_KNOWN: dict[str, Any] = {
    config.name: config for family in (resnet, densenet, shake_shake, inception) for config, _ in family.ZOO
}


@dataclass(frozen=True)
class GaterNetConfig:
    """What :class:`GaterNet` is built from.

    Attributes:
        name: zoo name.
        backbone: zoo name of the network whose filters are gated.
        gater: zoo name of the ResNet that sees the image first; its classifier is left out.
        bottleneck: b, the width between the gater's two linear maps.
        classes: of the task.
        backbone_options, gater_options: other fields of their configurations, such as ``{"shortcut": "pad"}``.
        gated: ``"last"``, the last convolution of each unit, as in the paper (section 4.4); ``"all"``, every
            convolution of these units. The latter is our option.
        threshold: a filter is on iff its score exceeds it; 0 in the paper, any number is our option.
        in_channels, image_size: images are [B, in_channels, image_size, image_size].

    Raises:
        UserError: a field has a value outside the above.
    """

    name: str
    backbone: str
    gater: str
    bottleneck: int
    classes: int
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    gater_options: Mapping[str, Any] = field(default_factory=dict)
    gated: Gated = "last"
    in_channels: int = 3
    image_size: int = 32
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.gated not in get_args(Gated):
            raise UserError(f"gated is {self.gated!r}; expected one of {', '.join(get_args(Gated))}")
        if self.bottleneck < 1:
            raise UserError(f"bottleneck is {self.bottleneck}; expected a positive number")
        _check_threshold(self.threshold)
        for part in ("backbone_options", "gater_options"):
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in getattr(self, part).items()}
            object.__setattr__(self, part, options)

    def part(self, role: Literal["backbone", "gater"]) -> Any:
        """The complete configuration of the backbone or of the gater.

        Raises:
            UserError: its name or one of its options is unknown, or the gater is no ResNet.
        """
        name, options = getattr(self, role), getattr(self, f"{role}_options")
        if name not in _KNOWN:
            raise UserError(f"{role} is {name!r}; expected one of {', '.join(_KNOWN)}")
        config = _KNOWN[name]
        if role == "gater" and not isinstance(config, resnet.ResNetConfig):
            raise UserError(f"gater is {name!r}; expected a ResNet")
        fixed = {"classes": self.classes, "in_channels": self.in_channels, "image_size": self.image_size}
        known = [f.name for f in dataclasses.fields(config) if f.name not in ("name", *fixed)]
        for key in options:
            if key not in known:
                raise UserError(f"unknown key {key!r} in {role}_options; expected one of {', '.join(known)}")
        return dataclasses.replace(config, **fixed, **options)


def _check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not math.isfinite(threshold):
        raise UserError(f"threshold is {threshold!r}; expected a finite number")


def resolve_threshold(thresholds: float | Mapping[str, float] | None, config: GaterNetConfig) -> float:
    """The given threshold, as a number or under ``"filters"``, else the configuration's.

    Raises:
        UserError: it is no finite number, or stands under another name.
    """
    if thresholds is None:
        return config.threshold
    if isinstance(thresholds, Mapping):
        check_keys(thresholds, "thresholds", (FILTERS,))
        thresholds = thresholds[FILTERS]
    _check_threshold(thresholds)
    return thresholds


class GatedConvolution(NamedTuple):
    """A convolution whose filters ``gates`` of the mask switch; paths in the backbone, ``norm`` None if it has none."""

    conv: str
    norm: str | None
    gates: slice


class GatePoint(NamedTuple):
    """Where a slice of the mask enters the backbone.

    Attributes:
        unit: path of the unit in the backbone.
        module: path of the module whose output [B, stop - start, H, W] the mask multiplies.
        gates: slice of the mask.
        convolutions: those that make this output. Channels that a pool passes on belong to none.
    """

    unit: str
    module: str
    gates: slice
    convolutions: tuple[GatedConvolution, ...]


def _gated_units(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Units whose filters are gated: residual units and branches, dense layers but a block's first, concatenations."""
    excluded: list[str] = []
    for path, module in backbone.named_modules():
        if any(f"{path}.".startswith(other) for other in excluded):
            continue
        if isinstance(module, densenet.DenseBlock):
            excluded.append(f"{path}.layers.0.")
        elif isinstance(module, inception.Branches):
            excluded.append(f"{path}.")
            yield path, module
        elif hasattr(module, "convolutions"):
            yield path, module


_Part = tuple[str | None, str | None, int]  # convolution, batch norm, filters


def _outputs(unit: nn.Module) -> list[tuple[str, list[_Part]]]:
    """Of each output in a unit that can be gated: the path of the module that gives it, and its parts."""
    outputs: list[tuple[str, list[_Part]]] = []
    if isinstance(unit, inception.Branches):
        parts: list[_Part] = [
            (None, None, filters) if path is None else (f"{path}.conv", f"{path}.norm", filters)
            for path, filters in unit.parts()
        ]
        last = {norm for _, norm, _ in parts}
        for path, module in unit.named_modules():
            if isinstance(module, inception.ConvNorm) and f"{path}.norm" not in last:
                outputs.append((f"{path}.norm", [(f"{path}.conv", f"{path}.norm", module.conv.out_channels)]))
        outputs.append(("", parts))
    else:
        for conv, norm in cast(densenet.Convolutions, unit.convolutions):
            filters = cast(nn.Conv2d, unit.get_submodule(conv)).out_channels
            outputs.append((norm or conv, [(conv, norm, filters)]))
    return outputs


def find_gate_points(backbone: nn.Module, gated: Gated = "last") -> list[GatePoint]:
    """The gate points of a backbone in the order of the mask. Section 4.4 of the paper; ``gated`` as in the config."""
    points: list[GatePoint] = []
    start = 0
    for unit_path, unit in _gated_units(backbone):
        outputs = _outputs(unit)
        for module, parts in outputs if gated == "all" else outputs[-1:]:
            first, convolutions = start, []
            for conv, norm, filters in parts:
                if conv is not None:
                    norm_path = None if norm is None else f"{unit_path}.{norm}"
                    convolutions.append(
                        GatedConvolution(f"{unit_path}.{conv}", norm_path, slice(start, start + filters))
                    )
                start += filters
            path = f"{unit_path}.{module}" if module else unit_path
            points.append(GatePoint(unit_path, path, slice(first, start), tuple(convolutions)))
    return points


@contextlib.contextmanager
def _masked(backbone: nn.Module, points: list[GatePoint], mask: Tensor) -> Iterator[None]:
    """While it is open, the outputs at the gate points are multiplied by their slices of ``mask`` [B, c]. In evaluation
    the gate word :func:`.functional.choose_filters` does that.

    The hooks live no longer than that: the backbone stays plain, and modules in it may be replaced or copied.
    """

    def choose(part: Tensor, module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output * part[:, :, None, None] if backbone.training else choose_filters(output, part)

    with contextlib.ExitStack() as stack:
        for point in points:
            hook = functools.partial(choose, mask[:, point.gates])
            handle = backbone.get_submodule(point.module).register_forward_hook(hook, prepend=True)
            stack.callback(handle.remove)
        yield


class Gater(nn.Module):
    """Image to one score per gated filter: features f, FC1 (h to b), BN, ReLU, FC2 (b to c). Section 3.2.

    ``forward``: images [B, in_channels, image_size, image_size] to scores g' [B, c].
    """

    def __init__(self, config: resnet.ResNetConfig, bottleneck: int, gates: int) -> None:
        super().__init__()
        self.features = resnet.ResNet(config)
        last, classifier = list(self.features.head.named_children())[-1]
        assert isinstance(classifier, nn.Linear)
        self.features.head.set_submodule(last, nn.Identity())
        self.fc1 = nn.Linear(classifier.in_features, bottleneck)
        self.norm = nn.BatchNorm1d(bottleneck)
        self.fc2 = nn.Linear(bottleneck, gates)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc2(F.relu(self.norm(self.fc1(self.features(images)))))


class GaterNet(Described, nn.Module):
    """The gater decides, per image, which filters of the backbone run.

    With g' = gater(images) [B, c], t a threshold, 0 in the paper, and the mask g [B, c]
    (:class:`dsn_models.gates.SemHash` of g' - t), slice ``point.gates`` of g multiplies the output of module
    ``point.module`` of the backbone for each ``point`` of ``gate_points``: that of a convolution after its batch norm,
    so that an "off" filter is exactly off (equation 4).

    - ``eval()``: g = 1(g' > t).
    - ``train()``: SemHash's noisy gates, then dropout of rate ``gate_dropout`` on g (appendix B; survivors are scaled
      by 1 / (1 - rate), our reading). A gater frozen by ``gater.requires_grad_(False)`` decides as in ``eval()``.

    ``forward(images, forced_gates=None, thresholds=None)``: images [B, in_channels, image_size, image_size] to logits
    [B, classes]. Afterwards ``last_gates["filters"]`` (uint8 [B, c]) is 1(g' > t) or what was forced, and
    ``last_scores["filters"]`` ([B, c]) is g'.

    Args of ``forward``:
        forced_gates: ``{"filters": uint8 [B, c]}`` of 0 and 1, in place of the mask.
        thresholds: t as a number or ``{"filters": number}``; the configuration's if not given.

    Raises:
        UserError: images, forced gates or thresholds do not fit.
    """

    def __init__(self, config: GaterNetConfig) -> None:
        super().__init__()
        self.config = config
        backbone = config.part("backbone")
        self.backbone = _MODULES[type(backbone)](backbone)
        self.gate_points = find_gate_points(self.backbone, config.gated)
        self.gater = Gater(config.part("gater"), config.bottleneck, self.num_gates)
        self.gate = SemHash()
        self.gate_dropout = 0.0
        self.last_gates: dict[str, Tensor] = {}
        self.last_scores: dict[str, Tensor] = {}

    @property
    def gate_counts(self) -> dict[str, int]:
        """Gates by their name in ``last_gates``."""
        return {FILTERS: self.num_gates}

    @property
    def num_gates(self) -> int:
        """c, the number of gated filters."""
        return self.gate_points[-1].gates.stop

    @property
    def unit_sizes(self) -> dict[str, int]:
        """Gates of each unit by its path in the backbone, in the order of the mask."""
        sizes: dict[str, int] = {}
        for point in self.gate_points:
            sizes[point.unit] = sizes.get(point.unit, 0) + point.gates.stop - point.gates.start
        return sizes

    def train(self, mode: bool = True) -> GaterNet:
        super().train(mode)
        if not next(self.gater.parameters()).requires_grad:
            self.gater.eval()
            self.gate.eval()
        return self

    def forward(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> Tensor:
        resnet.check_images(images, self.config.in_channels, self.config.image_size, self.gater.fc1.weight.dtype)
        forced = resolve_forced_gates(forced_gates, images.shape[0], self.gate_counts)[FILTERS]
        limit = resolve_threshold(thresholds, self.config)
        scores = self.gater(images)
        if forced is None:
            mask = self.gate(scores - limit)
            if self.gate.training and self.gate_dropout:
                ones = mask.new_ones(len(mask) * world_size(), self.num_gates)
                mask = mask * own_rows(F.dropout(ones, self.gate_dropout))
        else:
            mask = forced.to(scores)
        with _masked(self.backbone, self.gate_points, mask):
            logits = self.backbone(images)
        taken = scores - limit > 0 if forced is None else forced != 0
        self.last_gates = {FILTERS: taken.to(torch.uint8)}
        self.last_scores = {FILTERS: scores.detach()}
        return logits

    @torch.no_grad()
    def hold_gates(self, pattern: Mapping[str, Tensor]) -> None:
        """Sets every filter to be on, or off, whatever the image: ``{"filters": [1, c]}`` of 0 and 1."""
        nn.init.zeros_(self.gater.fc2.weight)
        self.gater.fc2.bias.copy_(self.config.threshold + torch.where(pattern[FILTERS][0] != 0, 1.0, -1.0))

    def gate_parameters(self) -> list[nn.Parameter]:
        """The parameters of the gater."""
        return list(self.gater.parameters())

    def dense_equivalent(self) -> nn.Module:
        """The backbone without gates: every filter runs. Shares this network's parameters."""
        return self.backbone


def _cifar(backbone: str, classes: int = 10, **options: Any) -> tuple[GaterNetConfig, str]:
    gater_options = {"shortcut": "projection"}
    config = GaterNetConfig(f"gaternet-{backbone}", backbone, "resnet-20", 8, classes, options, gater_options)
    return config, "CIFAR-10"


# The text gives ResNet-152 a bottleneck of 1,024; only 256 makes table 3's 83.80 M parameters (1,024: 120.97 M). Our
# Inception-v4 has 42.68 M parameters, 58.26 M with its gater, the paper's 44.50 and 61.67 M: unexplained.
def _imagenet(backbone: str, image_size: int = 224) -> tuple[GaterNetConfig, str]:
    config = GaterNetConfig(f"gaternet-{backbone}", backbone, "resnet-18", 256, 1000, image_size=image_size)
    return config, "ImageNet"


ZOO = (
    _cifar("resnet-20", shortcut="projection"),
    _cifar("resnet-56", shortcut="projection"),
    _cifar("resnet-164", stage_widths=(16, 128, 256)),
    _cifar("densenet-100-12"),
    _cifar("densenet-250-24"),
    _cifar("densenet-190-40"),
    _cifar("shake-shake-64d", stem_width=64),
    _cifar("shake-shake-96d", stem_width=96),
    _imagenet("resnet-34"),
    _imagenet("resnet-101"),
    _imagenet("resnet-152"),
    _imagenet("inception-v4", 299),
)
