"""Small networks of every kind that plans without gated dense blocks serve."""

import copy
import dataclasses

import torch
from dsn_kernels.nn.packing import Packer, pack_conv2d, pack_gate, pack_linear
from dsn_kernels.nn.plan_runner import make_runner
from dsn_kernels.ops.network import Plan
from references import randomise
from torch import nn

import dsn_models
from dsn_kernels import _C
from dsn_models.gaternet import find_gate_points
from dsn_models.inception import Branches, ConvNorm

_UNITS = {"stage_units": (2, 1, 1), "stage_widths": (8, 12, 20), "stem_width": 8}
_GATER = {"stage_units": (1, 1), "stage_widths": (8, 12), "stem_width": 8, "stem": "conv3x3"}

PLANNED = {
    "resnet-pad": ("resnet-20", {**_UNITS, "stage_widths": (8, 12, 16), "image_size": 9}),
    "resnet-projection": ("resnet-20", {**_UNITS, "shortcut": "projection", "image_size": 10}),
    "resnet-preact": ("resnet-164", {"stage_units": (1, 2), "stage_widths": (16, 24), "image_size": 9}),
    "resnet-bottleneck": (
        "resnet-50",
        {"stage_units": (1, 2), "stage_widths": (16, 24), "stem_width": 8, "image_size": 28},
    ),
    "skipnet-rnn": ("skipnet-38-rnn", {**_UNITS, "image_size": 8}),
    "skipnet-single": (
        "skipnet-38-rnn",
        {"stage_units": (1, 1), "stage_widths": (8, 12), "stem_width": 8, "image_size": 8},
    ),
    "skipnet-pad": ("skipnet-32-rnn", {**_UNITS, "stage_widths": (8, 12, 16), "image_size": 9}),
    "skipnet-ff-1": ("skipnet-38-ff", {**_UNITS, "image_size": 8}),
    "skipnet-ff-2": ("skipnet-110-ff", {**_UNITS, "image_size": 11}),
    "skipnet-imagenet": (
        "skipnet-18-rnn-imagenet",
        {"stage_units": (2, 2), "stage_widths": (8, 16), "stem_width": 8, "image_size": 33},
    ),
    "gaternet-last": (
        "gaternet-resnet-20",
        {"backbone_options": {**_UNITS, "shortcut": "projection"}, "gater_options": _GATER, "image_size": 8},
    ),
    "gaternet-all": (
        "gaternet-resnet-20",
        {
            "backbone_options": {**_UNITS, "stage_widths": (8, 12, 40), "shortcut": "pad"},
            "gater_options": _GATER,
            "gated": "all",
            "image_size": 9,
        },
    ),
    "gaternet-preact": (
        "gaternet-resnet-164",
        {
            "backbone_options": {"stage_units": (1, 2), "stage_widths": (16, 80)},
            "gater_options": _GATER,
            "gated": "all",
            "image_size": 8,
        },
    ),
    "gaternet-bottleneck": (
        "gaternet-resnet-164",
        {
            "backbone_options": {"stage_units": (3, 2), "stage_widths": (16, 40)},
            "gater_options": _GATER,
            "gated": "all",
            "image_size": 12,
        },
    ),
    "gunn": ("gunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 6}),
    "gunn-uneven": ("gunn-15", {"widths": (8, 20), "segments": (8, (1, 7, 12)), "image_size": 6}),
    "sunn": ("sunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 6}),
    "gunn-stacked": ("gunn-24", {"widths": (12, 16), "segments": (2, (5, 11)), "image_size": 4}),
    "gunn-imagenet": ("gunn-18", {"widths": (12, 20), "segments": (2, 4), "image_size": 32, "classes": 10}),
    "shake-shake": ("shake-shake-64d", {"stage_units": (2, 1), "width": 8, "stem_width": 6, "image_size": 9}),
    "densenet": ("densenet-40", {"block_layers": (2, 1), "growth_rate": 8, "image_size": 9}),
    "densenet-bc": ("densenet-bc-100", {"block_layers": (2, 2), "image_size": 8}),
    "lenet": ("lenet", {"image_size": 16}),
    "inception": ("inception-v4", {"blocks": (1, 1, 1), "image_size": 75}),
    "gaternet-shake": (
        "gaternet-shake-shake-64d",
        {
            "backbone_options": {"stage_units": (1, 1), "width": 8, "stem_width": 8},
            "gater_options": _GATER,
            "gated": "all",
            "image_size": 9,
        },
    ),
    "gaternet-densenet": (
        "gaternet-densenet-100-12",
        {
            "backbone_options": {"block_layers": (3, 2), "growth_rate": 6},
            "gater_options": _GATER,
            "gated": "all",
            "image_size": 9,
        },
    ),
    "gaternet-densenet-last": (
        "gaternet-densenet-100-12",
        {"backbone_options": {"block_layers": (2, 2), "growth_rate": 8}, "gater_options": _GATER, "image_size": 8},
    ),
    "gaternet-inception": (
        "gaternet-inception-v4",
        {"backbone_options": {"blocks": (1, 1, 1)}, "gater_options": _GATER, "gated": "all", "image_size": 75},
    ),
    "gaternet-inception-last": (
        "gaternet-inception-v4",
        {"backbone_options": {"blocks": (1, 1, 1)}, "gater_options": _GATER, "image_size": 75},
    ),
}


def _narrow(model: nn.Module) -> nn.Module:
    """An Inception-v4 for images of 21 x 21, with every kind of branch in it but a few channels each."""
    size = 21
    model.stem = nn.Sequential(
        ConvNorm(3, 6, 3, stride=2, valid=True),
        Branches(6, nn.MaxPool2d(3, stride=2), ConvNorm(6, 10, 3, stride=2, valid=True)),
    )
    one_by_seven = nn.Sequential(ConvNorm(16, 5, 1), ConvNorm(5, 9, (1, 7)), ConvNorm(9, 6, (7, 1)))
    average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    ends = Branches(6, ConvNorm(6, 5, (1, 3)), ConvNorm(6, 3, (3, 1)))
    model.units = nn.Sequential(
        Branches(16, ConvNorm(16, 7, 1), one_by_seven, nn.Sequential(average, ConvNorm(16, 4, 1))),
        Branches(17, ConvNorm(17, 5, 1), nn.Sequential(ConvNorm(17, 6, 1), ends), nn.MaxPool2d(3, stride=1, padding=1)),
    )
    model.head = nn.Sequential(*list(model.head)[:-1], nn.Linear(30, model.config.classes))
    model.config = dataclasses.replace(model.config, image_size=size)
    return model


def _narrow_gaternet(model: nn.Module) -> nn.Module:
    _narrow(model.backbone)
    model.config = dataclasses.replace(model.config, image_size=model.backbone.config.image_size)
    model.gater.features.config = dataclasses.replace(model.gater.features.config, image_size=model.config.image_size)
    model.gate_points = find_gate_points(model.backbone, model.config.gated)
    model.gater.fc2 = nn.Linear(model.gater.fc2.in_features, model.num_gates)
    return model


def make_planned(name: str, **overrides) -> nn.Module:
    zoo_name, options = PLANNED[name]
    torch.manual_seed(0)
    model = dsn_models.create(zoo_name, **{**options, **overrides})
    if "inception" in name:
        model = _narrow_gaternet(model) if name.startswith("gaternet") else _narrow(model)
    randomise(model)
    for module in model.modules():  # scales that leave the activations of many layers of one size
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.data.abs_().add_(0.3)
    return model


@dataclasses.dataclass
class ResidualUnits:
    """Units of two 3x3 on one map, x += conv2(relu(conv1(x))), then ReLU; some behind a gate on the pooled map."""

    plan: Plan
    packer: Packer
    convs: list[tuple[nn.Conv2d, nn.Conv2d]]
    gates: list[nn.Linear | None]

    def runner(self, dtype, backend):
        return make_runner(self.plan, self.packer.tensor(), dtype, backend)

    def reference(self, image, taken, dtype):
        """The map and, of each gate, its logit, with the gates of ``taken`` [B, gates] open."""
        x, logits, columns = image.to(dtype), [], iter(taken.bool().T)
        for convs, gate in zip(self.convs, self.gates, strict=True):
            first, last = (copy.deepcopy(conv).to(dtype) for conv in convs)
            y = (x + last(first(x).relu())).relu()
            if gate is None:
                x = y
                continue
            logits.append(copy.deepcopy(gate).to(dtype)(x.mean((2, 3)))[:, 0])
            x = torch.where(next(columns)[:, None, None, None], y, x)
        return x, torch.stack(logits, 1) if logits else taken.to(dtype)


def residual_units(channels: int, size: tuple[int, int], gated: tuple[bool, ...]) -> ResidualUnits:
    """A plan that loads a map, keeps its pooled vector, runs units and stores it."""
    torch.manual_seed(0)
    packer, plan = Packer(), Plan()
    x, inner = plan.buffer(channels, *size), plan.buffer(channels, *size)
    plan.add("load", dst=x, in_channels=channels)
    plan.add("pool_sums", src=x, in_channels=channels)
    weights = pack_linear(packer, nn.Linear(channels, 1))
    plan.add("linear", src=x, in_channels=channels, out_channels=1, weights=weights)  # so that the sums are kept
    relu, ends = _C.FLAGS["relu"], sum(_C.FLAGS[name] for name in ("accumulate", "relu", "pool"))
    units = ResidualUnits(plan, packer, [], [])
    for has_gate in gated:
        number = sum(gate is not None for gate in units.gates) if has_gate else -1
        units.gates.append(nn.Linear(channels, 1).requires_grad_(False) if has_gate else None)
        convs = tuple(nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False) for _ in range(2))
        units.convs.append(convs)
        if has_gate:
            weights = pack_gate(packer, units.gates[-1].weight, units.gates[-1].bias)
            plan.add("gate", src=x, in_channels=channels, gate=_C.GATES["soft"], first_gate=number, weights=weights)
        with plan.region("residual_unit", front=int(has_gate)):
            for conv, src, dst, flags in zip(convs, (x, inner), (inner, x), (relu, ends), strict=True):
                plan.add("conv2d", src=src, dst=dst, only_if=number, flags=flags, **pack_conv2d(packer, conv, None))
    plan.add("store", src=x, in_channels=channels)
    return units
