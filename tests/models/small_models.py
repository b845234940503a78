"""Small configurations of every model, quick on one core."""

import torch

import dsn_models

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


class UsersNetwork(torch.nn.Module):
    """A network of a user's own, built from one gated block, one transition and one head."""

    def __init__(self):
        super().__init__()
        branch = dsn_models.create("concat-bc-100", **SMALL["concat-bc-100"]).fine
        self.stem = torch.nn.Conv2d(3, 24, 3, padding=1)
        self.block, self.transition = branch.blocks[0], branch.transitions[0]
        self.head = dsn_models.densenet.Head(self.transition.conv.out_channels, 5)

    def forward(self, x):
        y, taken, _ = self.block(self.stem(x))
        return self.head(self.transition(y)), taken


class _OwnNetwork(dsn_models.layer_skippable.LayerSkippableNetwork):
    """No network of the zoo, but of its parts, which it puts together itself."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def own_network(name, **overrides):
    """A small LSN of a user's own class, of which only parts are accelerated."""
    torch.manual_seed(0)
    return _OwnNetwork(dsn_models.create(name, **{**SMALL[name], **overrides}).config).eval()


_GATER = {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "stem": "conv3x3"}
_GATERNETS = {  # by backbone family
    "resnet": {"stage_units": (1, 1), "stage_widths": (16, 32), "stem_width": 8, "stem": "conv3x3"},
    "densenet": {"block_layers": (2, 2, 2)},
    "shake": {"stage_units": (1, 1, 1), "width": 8, "stem_width": 8},
    "inception": {"blocks": (1, 1, 1)},
}
ZOO = [(config, family) for family, parts in dsn_models.zoo.FAMILIES.items() for config, _ in parts.zoo]


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
        widths = tuple(width // 4 for width in config.stage_widths)
        size = 64 if config.stem == "imagenet" else 16
        return {
            "stage_units": units, "stage_widths": widths, "stem_width": config.stem_width // 4, "image_size": size
        }  # fmt: skip
    if family == "lenet":
        return {}
    layers = tuple(min(2, count) for count in config.block_layers)
    return {"block_layers": layers, "image_size": 64 if getattr(config, "stem", "") == "imagenet" else 16}
