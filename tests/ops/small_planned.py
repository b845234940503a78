"""Small residual networks, SkipNets, GaterNets and GUNNs of every kind that plans serve."""

import torch
from references import randomise
from torch import nn

import dsn_models

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
    "gunn": ("gunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 6}),
    "gunn-uneven": ("gunn-15", {"widths": (8, 20), "segments": (8, (1, 7, 12)), "image_size": 6}),
    "sunn": ("sunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 6}),
    "gunn-stacked": ("gunn-24", {"widths": (12, 16), "segments": (2, (5, 11)), "image_size": 4}),
    "gunn-imagenet": ("gunn-18", {"widths": (12, 20), "segments": (2, 4), "image_size": 32, "classes": 10}),
}


def make_planned(name: str, **overrides) -> nn.Module:
    zoo_name, options = PLANNED[name]
    torch.manual_seed(0)
    model = randomise(dsn_models.create(zoo_name, **{**options, **overrides}))
    for module in model.modules():  # scales that leave the activations of many layers of one size
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.data.abs_().add_(0.3)
    return model
