"""A folder with a sound file of each kind, as small as it can be, and files damaged on purpose."""

import json
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import dsn_models
from dsn_models.convert import export_skipnet
from dsn_models.training.recipe import load_recipe

RECIPE = """
name = "tiny"
model = "dsn-navon"
[options]
block_layers = [1, 1]
image_size = 16
[data]
kind = "navon-sklearn"
train_images = 64
test_images = 50
[data.options]
canvas = 16
glyph = 4
[train]
epochs = 2
ungated_epochs = 1
batch = 32
"""
CLASSES = ("$x_1$", "_hidden", "日本 <b>&", "a" * 90)  # a formula, what a legend leaves out, no Latin letters, long
FILES = (
    "tiny.safetensors", "bare.safetensors", "lenet.safetensors", "skipnet.safetensors", "folder.safetensors",
    "tiny.toml", "released.pth", "data", "data/coarse.json", "data/test/_hidden/1.png", "folder", "empty",
)  # fmt: skip


class Damage(NamedTuple):
    """A file made from a sound one: cut behind ``at`` bytes, or its byte there (``at`` modulo its length) flipped."""

    source: str
    kind: str
    at: int

    def make(self, folder, name):
        data = (folder / self.source).read_bytes()
        at = self.at % (len(data) or 1)
        damaged = data[:at] if self.kind == "cut" else data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        (folder / name).write_bytes(damaged)


def make_corpus(folder):
    """One sound file of each kind, as small as it can be."""
    torch.manual_seed(0)
    (folder / "tiny.toml").write_text(RECIPE)
    recipe = load_recipe(folder / "tiny.toml")
    tiny = dsn_models.create(recipe.model, **recipe.options)
    dsn_models.save(tiny, folder / "tiny.safetensors", recipe=recipe.model_dump(mode="json"))
    dsn_models.save(tiny, folder / "bare.safetensors")
    dsn_models.save(dsn_models.create("lenet", image_size=64), folder / "lenet.safetensors")
    small = {"stage_units": (1, 1, 1), "stage_widths": (4, 4, 4), "stem_width": 4}
    skipnet = dsn_models.create("skipnet-38-rnn", **small)
    dsn_models.save(skipnet, folder / "skipnet.safetensors")
    export_skipnet(skipnet, folder / "released.pth")
    options = {"block_layers": (1, 1), "image_size": 16, "in_channels": 3, "classes": (2, len(CLASSES))}
    data = {"data": {"kind": "folder", "options": {}}}
    dsn_models.save(dsn_models.create("dsn-navon", **options), folder / "folder.safetensors", recipe=data)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), np.uint8)
    for part in ("train", "test"):
        for name in CLASSES:
            (folder / "data" / part / name).mkdir(parents=True)
            for i, image in enumerate(pixels):
                Image.fromarray(image).save(folder / "data" / part / name / f"{i}.png")
    (folder / "data" / "coarse.json").write_text(json.dumps({name: str(i % 2) for i, name in enumerate(CLASSES)}))
    (folder / "folder").mkdir()
    (folder / "empty").touch()


def whole(path):
    """Whether a file is complete and none that was begun: JSON and pages by what is in them, others by their names."""
    data = path.read_bytes()
    if path.name.startswith(".") and path.name != ".svg":
        return False
    if data.startswith((b"{", b"[")):
        return bool(json.loads(data))
    if data.lstrip().lower().startswith(b"<!doctype html"):
        return data.rstrip().endswith(b"</html>")
    if path.suffix == ".safetensors":
        return dsn_models.load(path) is not None
    ends = {".html": b"</html>", ".svg": b"</svg>", ".pdf": b"%%EOF", ".png": b"IEND\xaeB`\x82"}
    return path.suffix not in ends or data.rstrip().endswith(ends[path.suffix])
