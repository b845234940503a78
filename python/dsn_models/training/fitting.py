"""What a recipe leaves to its data and its model: image size and class count."""

from __future__ import annotations

from typing import Any

import torch

from .. import zoo
from ..data import SIZED, CoarseFineDataset
from .recipe import Recipe


def data_options(recipe: Recipe) -> dict[str, Any]:
    """The options of the recipe's data; images in files are cut to the model's size where they do not say theirs."""
    options = dict(recipe.data.options)
    if recipe.data.kind in SIZED and "image_size" not in options:
        given = recipe.options.get("image_size")
        options["image_size"] = zoo.configuration(recipe.model)[1]["image_size"] if given is None else given
    return options


def model_options(recipe: Recipe, data: CoarseFineDataset) -> dict[str, Any]:
    """The options of the recipe's model; class count and image size are the data's where it does not say them."""
    options = dict(recipe.options)
    own = zoo.configuration(recipe.model)[1]
    if not {"classes", "num_classes"} & set(options):
        counts = {"coarse": data.coarse_classes, "fine": data.fine_classes}
        pair = isinstance(own["classes"], tuple)
        options["classes"] = tuple(counts.values()) if pair else counts.get(recipe.task, own["classes"])
    if len(data) and not {"image_size", "in_channels"} & set(options):
        channels, height, _ = data.batch(torch.zeros(1, dtype=torch.int64))[0].shape[1:]
        options |= {"image_size": height, "in_channels": channels}
    return options
