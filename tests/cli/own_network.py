"""A network that is none of ours, its trained weights and its data, as a user brings them to ``dsn gate``."""

import numpy as np
import torch
from PIL import Image

SOURCE = """
from torch import nn

limit = 3


class Unit(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        return (x + self.norm(self.conv(x))).relu()


def network(width=8, units=3, classes=3):
    stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    return nn.Sequential(stem, *(Unit(width) for _ in range(units)), head)


def counted(num_classes=3):
    return network(classes=num_classes)


def broken():
    raise RuntimeError("no such file: weights.bin")


def number():
    return 3


def pair():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    return Pair()
"""
ARCH = "ownpackage.networks:network"
COLOURS = ("red", "green", "blue")


def write_package(folder):
    """The package ``ownpackage``, in ``folder``."""
    (folder / "ownpackage").mkdir()
    (folder / "ownpackage" / "__init__.py").touch()
    (folder / "ownpackage" / "networks.py").write_text(SOURCE)


def own_network(**options):
    """The network of :data:`ARCH`, without an import."""
    space = {"__name__": "ownpackage"}
    exec(SOURCE, space)
    return space["network"](**options)


def write_images(folder, train=16, test=6):
    """``folder/train/COLOUR`` and ``folder/test/COLOUR``: noise with more of one channel."""
    random = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for channel, colour in enumerate(COLOURS):
            (folder / part / colour).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / part / colour / f"{i}.png")


def write_weights(path, **options):
    """The state dict of a network of :data:`ARCH`, as DataParallel in half precision leaves it."""
    torch.manual_seed(0)
    state = own_network(**options).state_dict()
    halved = {f"module.{key}": t.half() if t.is_floating_point() else t for key, t in state.items()}
    torch.save({"state_dict": halved, "epoch": 3}, path)
