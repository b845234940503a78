"""The table of networks that tests run, and how they are made: small ones of every model, quick on one core.

`SMALL` has one of each kind by its name in the zoo; `PLANNED` more of the kinds without gated dense blocks, so small
that the GPU kernels can be played; `VARIED` larger ones, whose maps the CPU kernels handle in more than one way.
"""

import torch
from torch import nn

import dsn_models
from tests.own_networks import OwnNetwork, narrow_gaternet, narrow_inception

SMALL = {
    "dsn-navon": {"image_size": 16},
    "concat-40": {"block_layers": (2, 2, 2), "image_size": 8},
    "concat-bc-100": {"block_layers": (2, 2, 2), "image_size": 8},
    "add-166": {"growth_rate": 4, "stage_widths": (8, 16, 32), "block_layers": (2, 2, 2), "image_size": 8},
    "dsn-121": {"growth_rate": 8, "block_layers": (2, 2, 2, 2), "image_size": 64},
    "lsn-navon": {"image_size": 16},
    "lsn-concat-bc-100": {"block_layers": (2, 2, 2), "image_size": 8},
    "gunn-15": {"widths": (8, 12), "segments": (4, (1, 5, 6)), "image_size": 8},
    "sunn-15": {"widths": (8, 12), "segments": (4, (1, 5, 6)), "image_size": 8},
    "gunn-24": {"widths": (8,), "segments": (2,), "image_size": 8},
    "gunn-18": {"widths": (8, 12), "segments": (4, 3), "image_size": 32, "classes": 5},
    "lenet": {"image_size": 16},
    "densenet-40": {"block_layers": (2, 2, 2), "image_size": 8},
    "densenet-bc-100": {"block_layers": (2, 2, 2), "image_size": 8},
    "densenet-121": {"growth_rate": 8, "block_layers": (2, 2, 2, 2), "image_size": 64},
    "resnet-18": {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "image_size": 32},
    "resnet-34": {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "image_size": 32},
    "resnet-164": {"stage_units": (1, 1, 1), "stage_widths": (16, 32, 64), "image_size": 16},
    "skipnet-38-rnn": {"stage_units": (1, 1, 1), "stage_widths": (8, 8, 16), "stem_width": 8, "image_size": 8},
    "skipnet-38-ff": {"stage_units": (1, 1, 1), "stage_widths": (8, 8, 16), "stem_width": 8, "image_size": 8},
    "skipnet-110-ff": {"stage_units": (1, 1, 1), "stage_widths": (8, 8, 16), "stem_width": 8, "image_size": 16},
    "act-32": {"stage_units": (2, 2, 2), "stage_widths": (8, 8, 16), "stem_width": 8, "image_size": 8},
    "shake-shake-64d": {"stage_units": (1, 1, 1), "width": 8, "stem_width": 8, "image_size": 16},
    "inception-v4": {"blocks": (1, 1, 1), "image_size": 75},
    **{
        f"gaternet-{backbone}": {
            "image_size": 16,
            "backbone_options": options,
            "gater_options": {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "stem": "conv3x3"},
        }
        for backbone, options in {
            "resnet-20": {"stage_units": (1, 1, 1), "stage_widths": (8, 8, 16), "stem_width": 8},
            "resnet-164": {"stage_units": (1, 1, 1), "stage_widths": (16, 32, 64)},
            "resnet-101": {"stage_units": (1, 1), "stage_widths": (16, 32), "stem_width": 8, "stem": "conv3x3"},
            "densenet-100-12": {"block_layers": (2, 2, 2)},
            "shake-shake-64d": {"stage_units": (1, 1, 1), "width": 8, "stem_width": 8},
            "inception-v4": {"blocks": (1, 1, 1)},
        }.items()
    },
}
SMALL["gaternet-inception-v4"]["image_size"] = 75
DUAL = [name for name in SMALL if name.startswith(("dsn", "concat", "add"))]


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
    "resnet-se": ("resnet-20-se", {**_UNITS, "image_size": 9}),
    "skipnet-se": ("skipnet-38-rnn", {**_UNITS, "image_size": 8, "excitation": 4}),
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
    "gunn-nores": ("gunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 6, "residual": False}),
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

_RESNET = {"stage_units": (2, 2, 2), "image_size": 16}
VARIED = {
    "resnet-pad": ("resnet-20", _RESNET),
    "resnet-projection": ("resnet-20", {**_RESNET, "shortcut": "projection", "image_size": 13}),
    "resnet-preact": ("resnet-164", {**_RESNET, "image_size": 9}),
    "resnet-bottleneck": ("resnet-50", {"stage_units": (1, 2), "stage_widths": (64, 128), "image_size": 56}),
    # Rows of 28, 14 and 7 pixels, then of 30, 15 and 8; weights that threads share.
    "resnet-28": ("resnet-20", {**_RESNET, "image_size": 28}),
    "resnet-30": ("resnet-20", {**_RESNET, "image_size": 30}),
    "resnet-heavy": ("resnet-50", {"stage_units": (1, 1), "stage_widths": (256, 512), "image_size": 56}),
    "resnet-se": ("resnet-20-se", _RESNET),
    "resnet-se-preact": ("resnet-164-se", {**_RESNET, "image_size": 9}),
    "resnet-se-bottleneck": (
        "resnet-50",
        {"stage_units": (2,), "stage_widths": (64,), "image_size": 56, "excitation": 8},
    ),
    "skipnet-se": ("skipnet-38-rnn", {**_RESNET, "excitation": 4}),
    "skipnet-rnn": ("skipnet-38-rnn", _RESNET),
    "skipnet-32": ("skipnet-38-rnn", {"stage_units": (2, 2, 2)}),
    "skipnet-pad": ("skipnet-32-rnn", {**_RESNET, "image_size": 15}),
    "skipnet-ff-1": ("skipnet-38-ff", _RESNET),
    "skipnet-ff-2": ("skipnet-110-ff", {**_RESNET, "image_size": 11}),
    "skipnet-imagenet": (
        "skipnet-18-rnn-imagenet",
        {"stage_units": (2, 2), "stage_widths": (64, 128), "image_size": 49},
    ),
    "gaternet-last": (
        "gaternet-resnet-20",
        {"backbone_options": {**{"stage_units": (2, 2, 2)}, "shortcut": "projection"}},
    ),
    "gaternet-all": (
        "gaternet-resnet-20",
        {"backbone_options": {"stage_units": (2, 2, 2), "shortcut": "pad"}, "gated": "all", "image_size": 17},
    ),
    "gaternet-preact": ("gaternet-resnet-164", {"backbone_options": {"stage_units": (2, 2, 2)}, "gated": "all"}),
    "gaternet-densenet": (
        "gaternet-densenet-100-12",
        {"backbone_options": {"block_layers": (2, 3), "growth_rate": 8}, "gated": "all", "image_size": 18},
    ),
    "gaternet-shake": (
        "gaternet-shake-shake-64d",
        {"backbone_options": {"stage_units": (1, 1), "width": 8, "stem_width": 8}, "gated": "all", "image_size": 17},
    ),
    "shake-shake": ("shake-shake-64d", {"stage_units": (2, 1), "width": 8, "stem_width": 8, "image_size": 15}),
    "densenet": ("densenet-40", {"block_layers": (2, 3), "image_size": 13}),
    "lenet": ("lenet", {"image_size": 28}),
    "gunn": ("gunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 16}),
    "gunn-uneven": ("gunn-15", {"widths": (12, 20), "segments": (12, (1, 7, 12)), "image_size": 9}),
    "gunn-narrow": ("gunn-15", {"widths": (40, 36), "segments": (40, (1,) * 30 + (6,)), "image_size": 9}),
    "gunn-nores": ("gunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 16, "residual": False}),
    "gunn-narrow-nores": ("gunn-15", {"widths": (40, 36), "segments": (40, 4), "image_size": 9, "residual": False}),
    "sunn-nores": ("sunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 8, "residual": False}),
    "gunn-stacked-nores": ("gunn-24", {"widths": (24,), "segments": (2,), "image_size": 8, "residual": False}),
    "gunn-narrow-imagenet": ("gunn-18", {"widths": (40, 60), "segments": (40, 4), "image_size": 32, "classes": 10}),
    "sunn": ("sunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 16}),
    "gunn-stacked": ("gunn-24", {"widths": (24, 36), "segments": (2, 3), "image_size": 16}),
    "gunn-imagenet": ("gunn-18", {"widths": (40, 80), "segments": (2, 4), "image_size": 32, "classes": 10}),
}

# Those of `make quick`: of every family one, by its name in the zoo.
QUICK = ("concat-bc-100", "lsn-concat-bc-100", "skipnet-38-rnn", "gaternet-resnet-20", "gunn-15", "resnet-20")
QUICK += ("densenet-40", "lenet")


def zoo_name(value):
    """The name in the zoo of what names or configures a network, else None."""
    name = getattr(value, "name", value)
    if not isinstance(name, str):
        return None
    name, _ = {**VARIED, **PLANNED}.get(name, (name, None))
    return name if name in dsn_models.names() else None


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Batch norms that move their input, negative scales among them; gates that open about half of the time."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
            m.weight.data.uniform_(-0.5, 1.5, generator=generator)
            m.bias.data.normal_(0, 0.3, generator=generator)
    for name, parameter in module.named_parameters():
        if "gates" in name and name.endswith("weight") and parameter.dim() > 1:
            parameter.data.normal_(0, 4 / parameter.shape[1] ** 0.5, generator=generator)
    return module.eval().requires_grad_(False)


def make_small(name, **overrides):
    """A small model whose batch norms have seen data, in eval mode."""
    torch.manual_seed(0)
    model = dsn_models.create(name, **{**SMALL[name], **overrides})
    model.train()
    model(make_images(model, 4))
    return model.eval()


def make_images(model, batch, dtype=torch.float32):
    config = model.config
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.in_channels, config.image_size, config.image_size, generator=generator).to(dtype)


def random_gates(fast, batch, density=0.5, seed=5):
    """Masks of an accelerated DSN's branches, each layer run with probability ``density``."""
    generator = torch.Generator().manual_seed(seed)
    return {n: (torch.rand(batch, fast.layers[n], generator=generator) < density).to(torch.uint8) for n in fast.layers}


def make_planned(name: str, **overrides) -> nn.Module:
    zoo_name, options = PLANNED[name]
    torch.manual_seed(0)
    model = dsn_models.create(zoo_name, **{**options, **overrides})
    if "inception" in name:
        model = narrow_gaternet(model) if name.startswith("gaternet") else narrow_inception(model)
    randomise(model)
    for module in model.modules():  # scales that leave the activations of many layers of one size
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.data.abs_().add_(0.3)
    return model


def make_varied(name):
    zoo_name, options = VARIED[name]
    torch.manual_seed(sum(map(ord, name)))
    model = dsn_models.create(zoo_name, **options).eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.3)
    return model


_GATERNETS = {  # by backbone family
    "resnet": {"stage_units": (1, 1), "stage_widths": (16, 32), "stem_width": 8, "stem": "conv3x3"},
    "densenet": {"block_layers": (2, 2, 2)},
    "shake": {"stage_units": (1, 1, 1), "width": 8, "stem_width": 8},
    "inception": {"blocks": (1, 1, 1)},
}


def own_network(name, **overrides):
    """A small LSN of a user's own class, of which only parts are accelerated."""
    torch.manual_seed(0)
    return OwnNetwork(dsn_models.create(name, **{**SMALL[name], **overrides}).config).eval()


# Those that one operator computes; tests/models/test_adaptive_time.py has the family that goes by export.
PLANNERS = [item for item in dsn_models.zoo.FAMILIES.items() if item[0] != "adaptive_time"]
ZOO = [(config, family) for family, parts in PLANNERS for config, _ in parts.zoo]


def smaller(config, family):
    """Options that keep what kind of network it is: its unit, stem, gates and merge, with few and narrow stages."""
    if family == "gaternet":
        backbone = next(options for kind, options in _GATERNETS.items() if f"-{kind}" in config.name)
        size = 75 if "inception" in config.name else 16
        return {"image_size": size, "backbone_options": backbone, "gater_options": _GATER}
    if family == "gradually_updated":
        return {"widths": (8, 12), "segments": (4, (1, 5, 6)), "image_size": 32 if config.stem == "imagenet" else 8}
    if family == "inception":
        return {"blocks": (1, 1, 1), "image_size": 75}
    if family == "shake_shake":
        return {"stage_units": (1, 1, 1), "width": 8, "image_size": 16}
    if family in ("resnet", "skipnet"):
        units = (2,) + (1,) * (len(config.stage_units) - 1)
        widths = tuple(width // 16 * 4 for width in config.stage_widths)
        size = 64 if config.stem == "imagenet" else 16
        return {
            "stage_units": units, "stage_widths": widths, "stem_width": config.stem_width // 4, "image_size": size
        }  # fmt: skip
    if family == "lenet":
        return {}
    layers = tuple(min(2, count) for count in config.block_layers)
    return {"block_layers": layers, "image_size": 64 if getattr(config, "stem", "") == "imagenet" else 16}
