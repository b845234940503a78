"""Every shipped recipe starts: its keys, tables and beginning, two steps of each of its phases on a small model."""

import dataclasses
from pathlib import Path

import pytest
import torch

import dsn_models
from dsn_models import UserError, zoo
from dsn_models.adaptive_time import AdaptiveTimeNetwork
from dsn_models.checkpoints import read_metadata
from dsn_models.data import CoarseFineDataset, open_dataset
from dsn_models.gaternet import GaterNet
from dsn_models.skipnet import SkipNet
from dsn_models.training import calibration, load_recipe, loop, recipe_names, train
from tests.networks import SMALL

# Models that share another's small configuration.
LIKE = {
    "sunn-24": "gunn-24",
    "sunn-18": "gunn-18",
    "gunn-18-wide": "gunn-18",
    "resnet-20": "gaternet-resnet-20",
    "resnet-32": "skipnet-38-rnn",
    "skipnet-32-rnn": "skipnet-38-rnn",
    "skipnet-110-rnn": "skipnet-38-rnn",
    "skipnet-101-rnn-imagenet": "skipnet-38-rnn",
    "gaternet-resnet-34": "gaternet-resnet-20",
}
IMAGES, BATCH = 8, 4


def small_options(recipe):
    options = SMALL[recipe.model if recipe.model in SMALL else LIKE[recipe.model]]
    if recipe.model == "resnet-20":
        options = {"image_size": options["image_size"], **options["backbone_options"]}
    shortcut = recipe.options.get("backbone_options", {}).get("shortcut")
    if shortcut:
        parts = ("backbone_options", "gater_options")
        options = options | {part: {**options[part], "shortcut": shortcut} for part in parts}
    return {key: value for key, value in options.items() if key != "classes"}


def two_steps_of_each_phase(section):
    if section.iterations:
        shorter = {"iterations": 2}
    else:
        joined = section.ungated_epochs + section.settled_epochs
        phases = (section.ungated_epochs, section.length - joined, section.settled_epochs)
        ungated, gated, settled = (min(length, 1) for length in phases)
        shorter = {"epochs": ungated + gated + settled, "ungated_epochs": ungated, "settled_epochs": settled}
    shorter["warmup"] = min(section.warmup, 1)
    if section.milestones:
        shorter["milestones"] = (1,)
    return section.model_copy(update={**shorter, "batch": BATCH})


class Noise(CoarseFineDataset):
    """Random images for a model."""

    def __init__(self, config, both):
        classes = config.classes if both else (config.classes, config.classes)
        self.coarse_classes, self.fine_classes = classes
        torch.manual_seed(0)
        self.images = torch.randn(IMAGES, config.in_channels, config.image_size, config.image_size)
        self.labels = [torch.randint(count, (IMAGES,)) for count in classes]

    def __len__(self):
        return IMAGES

    def batch(self, indices):
        return self.images[indices], *(labels[indices] for labels in self.labels)


def beginning(recipe, model):
    """What the recipe's ``init`` stands for: a model like its own, or the network that gates are added to."""
    before = Path(recipe.init).stem
    gated = isinstance(model, (SkipNet, GaterNet, AdaptiveTimeNetwork))
    if gated and (before not in recipe_names() or load_recipe(before).model != recipe.model):
        return model.backbone if isinstance(model, GaterNet) else model.dense_equivalent()
    return model


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.long
def test_a_recipe_starts(name, tmp_path, monkeypatch):
    recipe = load_recipe(name)
    options = small_options(recipe)
    changes = {"options": options, "train": two_steps_of_each_phase(recipe.train)}
    model = dsn_models.create(recipe.model, **options)
    if recipe.init:
        changes["init"] = str(dsn_models.save(beginning(recipe, model), tmp_path / "init.safetensors"))
    if recipe.gater.init:
        trained = zoo.build("resnet", dataclasses.asdict(model.gater.features.config))
        path = str(dsn_models.save(trained, tmp_path / "gater.safetensors"))
        changes["gater"] = recipe.gater.model_copy(update={"init": path})
    monkeypatch.setattr(loop, "open_dataset", lambda *_, **__: Noise(model.config, recipe.task == "both"))
    monkeypatch.setattr(calibration.fits, "_STEPS", 2)
    path = train(recipe.model_copy(update=changes), None, tmp_path / "out", progress=False)
    facts = read_metadata(path)
    assert facts["images_seen"] % (2 * BATCH) == 0 and facts["images_seen"] > 0
    assert facts["test"]["images"] == IMAGES


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_knows_its_data(name):
    """Options are refused by name before a folder is looked for; classes are those of the model."""
    recipe = load_recipe(name)
    if recipe.data.kind == "navon-sklearn":
        open_dataset(recipe.data.kind, None, False, IMAGES, **recipe.data.options)
    else:
        with pytest.raises(UserError, match="data folder is None; expected an existing folder"):
            open_dataset(recipe.data.kind, None, True, recipe.data.train_images, **recipe.data.options)
    configs = {config.name: config for family in zoo.FAMILIES.values() for config, _ in family.zoo}
    classes = recipe.options.get("classes", configs[recipe.model].classes)
    wanted = {
        "cifar-10": (2, 10), "cifar-10-jpeg": (2, 10), "cifar-100": (20, 100),
        "cub-200-2011": (39, 200), "stanford-cars": (7, 196),
    }.get(recipe.data.kind, (10, 10))  # fmt: skip
    if recipe.data.kind != "folder":
        expected = {"both": wanted, "coarse": wanted[0], "fine": wanted[1]}[recipe.task]
        assert (tuple(classes) if recipe.task == "both" else classes) == expected
