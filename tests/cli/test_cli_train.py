"""``dsn train``: keys of a recipe from the command line, where files are looked up, what data and model decide."""

import json

import pytest
from corpus import RECIPE
from PIL import Image

import dsn_models
from dsn_models import UserError
from dsn_models.checkpoints import read_metadata
from dsn_models.data import open_dataset
from dsn_models.training.overriding import find_checkpoints, override
from dsn_models.training.recipe import load_recipe

SMALL = """
name = "small"
model = "resnet-20"
task = "fine"
[options]
stage_units = [1, 1, 1]
stage_widths = [8, 8, 8]
stem_width = 8
[data]
kind = "folder"
[train]
epochs = 1
batch = 4
lr = 0.05
"""


def long_recipe(tmp_path):
    path = tmp_path / "long.toml"
    train = "epochs = 40\nungated_epochs = 20\nsettled_epochs = 8\nschedule = 'step'\nmilestones = [10, 20]"
    path.write_text(f"name = 'long'\nmodel = 'dsn-navon'\n[data]\nkind = 'navon-sklearn'\n[train]\n{train}\n")
    return load_recipe(path)


@pytest.mark.parametrize(
    ("epochs", "phases", "milestones"),
    [(20, (10, 4), (5, 10)), (4, (2, 1), (1, 2)), (1, (0, 0), (1,)), (2, (1, 0), (1,))],
)
def test_fewer_epochs_shrink_phases_in_proportion(tmp_path, epochs, phases, milestones):
    train = override(long_recipe(tmp_path), {"train.epochs": epochs}).train
    assert (train.ungated_epochs, train.settled_epochs) == phases and train.milestones == milestones


def test_phases_that_are_given_stay(tmp_path):
    train = override(long_recipe(tmp_path), {"train.epochs": 10, "train.ungated_epochs": 3}).train
    assert (train.ungated_epochs, train.settled_epochs) == (3, 2)


def test_keys_from_the_command_line(dsn, recipe):
    keys = ("--set", "train.lr=0.02", "--set", "data.test_images=16", "--set", "gates.begin=kept", "--epochs", 1)
    status, out, err = dsn("train", recipe, *keys, "--out", "a/b", "--json", "-")
    assert status == 0, err
    facts = json.loads(out)["recipe"]
    assert (facts["train"]["lr"], facts["data"]["test_images"], facts["gates"]["begin"]) == (0.02, 16, "kept")
    assert facts["train"]["epochs"] == 1 and dsn_models.load("a/b/tiny.safetensors")


def test_a_table_is_printed_and_no_json(dsn, recipe):
    status, out, err = dsn("train", recipe, "--epochs", 1, "--out", "out")
    assert status == 0 and "accuracy" in out and "{" not in out + err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "train.lrr=1"), "unknown key 'train.lrr' (given 1); near it: train.lr"),
        (("--set", "seed"), "setting is 'seed'; expected KEY=VALUE"),
        (("--set", "name.x=1"), "'name.x' lies within 'name', which is no table"),
        (("--set", "train.lr=fast"), "key 'train.lr' (given 'fast')"),
        (("--init", "nowhere.safetensors"), "nor a shipped network (dsn-navon-digits)"),
    ],
)
def test_a_mistake_is_one_line(dsn, recipe, words, told):
    status, out, err = dsn("train", recipe, *words)
    assert (status, out, err.count("\n")) == (2, "", 1) and told in err


def test_where_init_is_looked_up(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "tiny.toml"
    path.write_text(
        RECIPE.replace("\n", "\ninit = 'start.safetensors'\n", 1)
        if RECIPE.startswith("\n")
        else f"init = 'start.safetensors'\n{RECIPE}"
    )
    recipe, shipped = load_recipe(path), tmp_path / "assets" / "start.safetensors"

    def found(recipe=recipe):
        return find_checkpoints(recipe, path.parent, [shipped]).init

    monkeypatch.chdir(tmp_path)
    assert found() == str(shipped)
    (tmp_path / "start.safetensors").touch()
    assert found() == "start.safetensors"
    (path.parent / "start.safetensors").touch()
    assert found() == str(path.parent / "start.safetensors")
    # What an earlier training left in its default folder.
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "first.safetensors").touch()
    chained = override(recipe, {"init": "runs/first.safetensors"})
    assert found(chained) == "runs/first/first.safetensors"
    with pytest.raises(UserError, match="init is absent, which is neither in .* nor a shipped network"):
        found(override(recipe, {"init": "absent"}))


def write_pictures(folder, classes):
    for part in ("train", "test"):
        for i in range(classes):
            (folder / part / f"class{i}").mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (40, 40), (60 * i, 20 * n, 0)).save(folder / part / f"class{i}" / f"{n}.png")


def test_a_folder_decides_how_many_classes_there_are(dsn, tmp_path):
    write_pictures(tmp_path / "data", 3)
    (tmp_path / "small.toml").write_text(SMALL)
    status, _, err = dsn("train", "small.toml", "--data", "data", "--out", "three")
    assert status == 0, err
    config = dsn_models.load("three/small.safetensors").config
    assert (config.classes, config.image_size) == (3, 32)
    # Another class count gets a fresh classifier, and says so.
    write_pictures(tmp_path / "more", 5)
    more = (
        "--data",
        "more",
        "--out",
        "five",
        "--init",
        "three/small.safetensors",
        "--set",
        "data.options.image_size=32",
    )
    status, _, err = dsn("train", "small.toml", *more)
    assert status == 0 and "three/small.safetensors has 3 classes, the recipe 5: " in err and "begin anew" in err
    assert dsn_models.load("five/small.safetensors").config.classes == 5
    assert read_metadata("five/small.safetensors")["data"]["classes"] == {"fine": [f"class{i}" for i in range(5)]}


def test_a_map_of_coarse_classes_is_for_two_tasks(tmp_path):
    write_pictures(tmp_path, 2)
    (tmp_path / "coarse.json").write_text('{"class0": "all"}')
    assert len(open_dataset("folder", tmp_path, True, image_size=8, task="fine")) == 8
    with pytest.raises(UserError, match="class 'class1' .* is not in the coarse-label map"):
        open_dataset("folder", tmp_path, True, image_size=8)
    with pytest.raises(UserError, match="folder data needs image_size, in pixels, such as image_size=224"):
        open_dataset("folder", tmp_path, True)


def test_num_classes_is_understood():
    assert dsn_models.create("resnet-20", num_classes=7).config.classes == 7
    with pytest.raises(UserError, match="which mean the same; give one"):
        dsn_models.create("resnet-20", classes=3, num_classes=7)


def test_a_network_of_one_task_has_one_task(dsn, tmp_path):
    """The task is told from model and data; no table has a column for it."""
    write_pictures(tmp_path / "data", 3)
    (tmp_path / "data" / "coarse.json").write_text('{"class0": "a", "class1": "b", "class2": "b"}')
    name = dsn_models.save(dsn_models.create("skipnet-38-rnn", stage_units=(1, 1, 1), classes=3), "s.safetensors")
    data = ("--kind", "folder", "--data", "data")
    status, out, err = dsn("eval", name, *data)
    assert status == 0 and "accuracy" in out, err
    assert not {"coarse", "fine", "branch", "task"} & set((out + err).split())
    status, out, err = dsn("sweep", name, *data, "--thresholds", 1, "--seconds", 0)
    assert status == 0 and "fine" not in out and "accuracy" in out and "error" not in out, err
    other = dsn_models.save(dsn_models.create("skipnet-38-rnn", stage_units=(1, 1, 1), classes=9), "o.safetensors")
    status, _, err = dsn("eval", other, *data)
    assert (status, "the model has 9 classes, the data 3; choose data of as many classes" in err) == (2, True), err
    status, _, err = dsn("eval", name, *data, "--task", "coarse")
    assert status == 2 and "the model has 3 coarse classes, the data 2; choose --task fine" in err


def test_a_recipe_of_one_task_need_not_name_it(dsn, tmp_path):
    write_pictures(tmp_path / "data", 2)
    (tmp_path / "small.toml").write_text(SMALL.replace('task = "fine"\n', ""))
    status, out, err = dsn("train", "small.toml", "--data", "data", "--out", "out")
    assert status == 0 and "fine" not in out + err and "epoch 1" in err, err
    assert read_metadata("out/small.safetensors")["recipe"]["task"] == "fine"
    # The data is told from the names in its folder, for a checkpoint that does not say it.
    bare = dsn_models.save(dsn_models.load("out/small.safetensors"), "bare.safetensors")
    status, out, err = dsn("eval", bare, "--data", "data")
    assert status == 0 and "8 test images" in out, err
