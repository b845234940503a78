"""What fuzzing found, and what users bring along: each case is served or refused in one line, and says which."""

import math
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import typer
from corpus import CLASSES, RECIPE, whole

from dsn_kernels.cli.common import finite
from dsn_models import UserError, checkpoints
from dsn_models.training.recipe import load_recipe


@pytest.fixture
def folder(corpus, tmp_path):
    """The working folder, filled with the corpus."""
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    return tmp_path


def refused(result, message):
    status, out, err = result
    assert (status, out) == (2, "") and err.startswith("dsn: error: ") and err.count("\n") == 1
    assert message in err and len(err) < 2000


@pytest.mark.long
def test_classes_of_any_name_in_a_report(dsn, folder):
    status, out, err = dsn(
        "report", "folder.safetensors", "--data", "data", "--seconds", 0, "--thresholds", 0, "--pictures", "pictures"
    )
    assert (status, err) == (0, "")
    page = (folder / "dsn-report.html").read_text()
    assert "$x_1$" in page and "日本 &lt;b&gt;&amp;" in page and "<b>&" not in page and "a" * 41 not in page
    assert all(whole(path) for path in (folder / "pictures").iterdir())


def test_not_a_number_is_no_number_of_seconds():
    """Whatever the command line's library makes of a range."""
    with pytest.raises(typer.BadParameter, match="nan is not a number"):
        finite(math.nan)
    assert finite(0.5) == 0.5


@pytest.mark.long
def test_a_class_without_images_is_told_by_its_shortened_name(dsn, folder):
    for path in (folder / "data" / "test" / CLASSES[3]).iterdir():
        path.unlink()
    status, _, err = dsn("report", "folder.safetensors", "--data", "data", "--seconds", 0, "--thresholds", 0)
    short = f"{'a' * 19}…{'a' * 19}"
    assert status == 0 and err.splitlines() == [
        f"note: data/test: skipped 1 folder without images ({short!r})",
        f"note: data/test: no image of 1 of the 4 classes, {short!r}",
        f"note: The data holds no image of fine class {short}.",
    ]


@pytest.mark.parametrize("device", ["mps", "meta", "gpu", "cuda:x", "", "cpu:-2"])
def test_devices_that_training_does_not_know(dsn, folder, device):
    (folder / "tiny.toml").write_text(RECIPE)
    refused(dsn("train", "tiny.toml", "--device", device), f"device is '{device}'; training runs on 'cpu', 'cuda' or")


def test_a_recipe_with_a_byte_order_mark(dsn, folder):
    (folder / "marked.toml").write_text("\ufeff" + RECIPE, encoding="utf-8")
    status, out, _ = dsn("train", "marked.toml", "--epochs", 1, "--threads", 1)
    assert status == 0 and "50 test images" in out


@pytest.mark.parametrize(
    "change, message",
    [
        (("epochs = 2", "epochs = 2\nepochs = 3"), "is no TOML"),
        (("epochs = 2", "epochs = nan"), "train.epochs"),
        (("batch = 32", "lr = nan"), "finite number"),
        (("batch = 32", "lr = inf"), "finite number"),
        (("batch = 32", "batch = 99999999999999999999"), "train.batch"),
        (("batch = 32", "batch = 'many'"), "train.batch"),
        (("image_size = 16", "image_size = '16'"), "option image_size is '16'; expected int"),
        (("image_size = 16", "image_size = 16.5"), "option image_size is 16.5; expected int"),
        (("image_size = 16", "image_size = true"), "option image_size is True; expected int"),
        (("block_layers = [1, 1]", "block_layers = 'ab'"), "option block_layers is 'ab'; expected tuple[int, ...]"),
        (("block_layers = [1, 1]", "block_layers = [1, 0.5]"), "option block_layers is (1, 0.5); expected tuple[int"),
        (("block_layers = [1, 1]", "compression = nan"), "option compression is nan; expected float"),
        (("[train]", "[train]\n" + "x = " + "[" * 3000 + "]" * 3000), "is no TOML"),
        (('name = "tiny"', f'name = "{"n" * 100_000} "'), "pattern"),
    ],
    ids=lambda value: value[1][:40] if type(value) is tuple else "",
)
def test_recipes_that_do_not_fit(dsn, folder, change, message):
    assert change[0] in RECIPE
    (folder / "odd.toml").write_text(RECIPE.replace(*change))
    refused(dsn("train", "odd.toml", "--out", "run"), message)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        # numbers: NaN passes comparisons, what is huge overflows further down
        (["bench", "lenet", "--seconds", "nan"], "'--seconds'"),
        (["bench", "lenet", "--seconds", "inf"], "'--seconds'"),
        (["bench", "lenet", "--batch", "9" * 30], "batch is [9"),
        (["bench", "lenet", "--seed", "9" * 30], "'--seed'"),
        (["bench", "lenet", "--threads", "999999"], "'--threads'"),
        (["bench", "lenet", "--load", f"qps={'9' * 400},slo=1ms"], "load is"),
        (["eval", "tiny.safetensors", "--epsilon", "nan"], "'--epsilon'"),
        (["sweep", "tiny.safetensors", "--thresholds", "100000"], "'--thresholds'"),
        (["train", "tiny.toml", "--lr", "nan"], "finite number"),
        # options of a configuration are of its types
        (["bench", "lenet", "--option", "image_size=many"], "option image_size is 'many'; expected int"),
        (["bench", "resnet-20", "--option", "stage_units=1,x,1"], "option stage_units is (1, 'x', 1); expected tuple"),
        # brackets and colons are no markup, paths no formats
        (["eval", "[/red].safetensors"], "no checkpoint at [/red].safetensors"),
        (["eval", ":smile:%s{0}"], "no checkpoint at :smile:%s{0}"),
        (["eval", "a\nb"], "no checkpoint at a b"),
        (["eval", "\x1b[31m"], r"no checkpoint at \x1b[31m"),
        (["eval", ""], "no checkpoint at ."),
        # folders and devices in a file's place, names that are too long
        (["eval", "folder"], "folder"),
        (["train", "data"], "no recipe 'data'"),
        (["convert", "folder"], "folder"),
        (["eval", "n" * 300], "File name too long"),
        (["bench", "lenet", "--json", "n" * 300], "File name too long"),
    ],
    ids=lambda value: " ".join(value)[:50] if type(value) is list else "",
)
def test_refused_in_one_line(dsn, folder, words, message):
    before = set(folder.rglob("*"))
    refused(dsn(*words), message)
    assert set(folder.rglob("*")) == before


def lengths(data, dense, spread):
    """Every length up to ``dense``, and about ``spread`` more below the whole."""
    return sorted({*range(dense), *range(dense, len(data), max(1, len(data) // spread))})


@pytest.mark.long
@pytest.mark.parametrize(
    "source, words",
    [("tiny.safetensors", ["eval", "FILE"]), ("released.pth", ["convert", "FILE", "out.safetensors"])],
    ids=["checkpoint", "released"],
)
def test_weights_cut_short(dsn, folder, source, words):
    data = (folder / source).read_bytes()
    cut = folder / f"cut{Path(source).suffix}"
    for length in lengths(data, 20, 50):
        cut.write_bytes(data[:length])
        refused(dsn(*[str(cut) if word == "FILE" else word for word in words]), cut.name)
    assert not (folder / "out.safetensors").exists()


def test_a_recipe_cut_short(tmp_path):
    """Cut between two lines it may be sound, with what then holds; else it is refused."""
    cut, sound = tmp_path / "cut.toml", 0
    for length in range(len(RECIPE)):
        cut.write_text(RECIPE[:length])
        try:
            sound += load_recipe(cut).train.length > 0
        except UserError as error:
            assert "cut.toml" in str(error)
    assert sound


@pytest.fixture
def nobody(tmp_path):
    """A folder of a user who is not the administrator, whom no permission stops; this process is that user there."""
    own = os.geteuid()
    if own == 0:
        below = [folder for folder in (tmp_path, *tmp_path.parents) if Path(tempfile.gettempdir()) in folder.parents]
        for folder in below:
            folder.chmod(0o755)
        shutil.chown(tmp_path, 65534)
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(own)


def test_what_may_not_be_read_or_written(dsn, corpus, nobody):
    (nobody / "mine.safetensors").write_bytes(b"")
    (nobody / "mine.safetensors").chmod(0)
    (nobody / "mine.toml").write_text(RECIPE)
    (nobody / "mine.toml").chmod(0)
    refused(dsn("eval", "mine.safetensors"), "mine.safetensors")
    refused(dsn("train", "mine.toml"), "recipe mine.toml cannot be read: Permission denied")
    (nobody / "kept").mkdir(mode=0o555)
    refused(dsn("info", "--json", "kept/info.json"), "cannot write kept/info.json")
    refused(dsn("convert", "absent.pth", "kept/out.safetensors"), "no file absent.pth")


def test_a_checkpoint_that_is_written_to_the_last_byte_or_not_at_all(folder, monkeypatch):
    """Ctrl-C while a file is written leaves nothing beside it."""

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    before = set(folder.iterdir())
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_atomically(folder / "new.json", b"{}")
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("words", [("info", "--json"), ("report", "folder.safetensors", "--out")])
def test_a_checkpoint_is_not_overwritten_by_what_is_none(dsn, folder, words):
    before = (folder / "folder.safetensors").read_bytes()
    refused(dsn(*words, "folder.safetensors"), "folder.safetensors is named as a checkpoint and would hold none")
    assert (folder / "folder.safetensors").read_bytes() == before
