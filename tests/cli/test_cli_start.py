"""Before a command runs: help, version, options of one meaning, names that are nearly right."""

import re
import subprocess
import sys

import pytest

import dsn_command
import dsn_kernels
from dsn_kernels import cli


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",)])
def test_help_names_every_command(dsn, words):
    status, out, err = dsn(*words)
    assert (status, err) == (0, "") and out.startswith("Usage: dsn [OPTIONS] COMMAND")
    for name, summary in dsn_command.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", out, re.M), name
    assert out.rstrip("\n") == dsn_command.help_text().rstrip("\n")


def test_help_needs_no_torch():
    code = "import sys, dsn_command; sys.argv = ['dsn']; dsn_command.main(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.startswith("Usage: dsn") and run.stdout.endswith("False\n"), run.stderr


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_version(dsn, word):
    assert dsn(word) == (0, f"dsn {dsn_kernels.__version__}\n", "")


def test_every_command_has_help_and_its_values_have_names_in_capitals(dsn):
    assert {command.name for command in cli.app.registered_commands} == set(dsn_command.COMMANDS)
    for name in dsn_command.COMMANDS:
        status, out, _ = dsn(name, "-h")
        assert status == 0 and f"Usage: dsn {name}" in out
        assert not re.search(r"^  -.*<\w+>", out, re.M), out


# Options whose name stands for one thing, whichever command has it, and the words of help that say so.
SHARED = {
    "batch": "Images at a time",
    "images": "Test images to use",
    "thresholds": "Thresholds tried",
    "data": "older",
}


@pytest.mark.parametrize("option", SHARED)
def test_an_option_means_one_thing(option):
    found = [p for c in cli.command().commands.values() for p in c.params if p.name == option]
    assert len(found) >= 2
    assert all(SHARED[option] in p.help for p in found), [p.help for p in found]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("trian",), "Did you mean 'train'; see dsn --help"),
        (("train",), "see dsn train --help"),
        (("train", "r.toml", "--epochs", "x"), "see dsn train --help"),
        (("train", "cifar10-jpeg-gun"), "no recipe 'cifar10-jpeg-gun'; near it: "),
        (("bench", "concat-41"), "no checkpoint at concat-41; near it: concat-40"),
        (("bench", "resnet-20", "--against", "eagre"), "unknown baseline 'eagre'; near it: eager"),
        (("bench", "resnet-20", "--option", "clases=3"), "unknown option 'clases'; near it: classes"),
        (("timeline", "skipnet-38-rn"), "near it: skipnet-38-rnn"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(dsn, words, told):
    status, out, err = dsn(*words)
    assert (status, out, err.count("\n")) == (2, "", 1) and told in err


def test_a_file_that_is_nearly_right_is_suggested(dsn, tmp_path):
    (tmp_path / "gated.safetensors").touch()
    assert "no checkpoint at gaetd.safetensors; near it: gated.safetensors" in dsn("eval", "gaetd.safetensors")[2]


def test_images_are_spread_over_data_of_any_kind(dsn, checkpoint):
    status, out, err = dsn("eval", checkpoint, "--images", 8, "--batch", 4)
    assert status == 0 and "8 test images" in out, err
