"""A user's mistake: one line on stderr, nothing on stdout, exit status 2, no traceback, no file."""

import os
from pathlib import Path

import pytest

from dsn_kernels import cli


def cases():
    """Arguments and a part of the message. CKPT and RECIPE are sound; BARE does not tell its data."""
    return [
        (["fly"], "No such command 'fly'"),
        (["bench"], "bench needs NAME|CKPT"),
        (["info", "--colour"], "No such option: --colour"),
        (["bench", "CKPT", "--seed", "x"], "'--seed'"),
        (["bench", "resnet-1001"], "no checkpoint at resnet-1001; near it: resnet-101"),
        (["bench", "resnet-20", "--gates", "shut"], "gates is 'shut', but resnet-20 has no gates; expected open"),
        (["bench", "resnet-20", "--option", "depth"], "option is 'depth'; expected KEY=VALUE"),
        (["bench", "resnet-20", "--option", "depth=20"], "unknown option 'depth'; expected one of name,"),
        (["bench", "CKPT", "--option", "gate=soft"], "options are for models of the zoo"),
        (["bench", "resnet-20", "--baseline-model", "dsn-navon"], "the baseline takes images [1, 64, 64]"),
        (["bench", "CKPT", "--batch", "1,two"], "batch is '1,two'"),
        (["bench", "CKPT", "--batch", "0"], "batch is [0]"),
        (["bench", "CKPT", "--gates", "random:2"], "gates is 'random:2'"),
        (["bench", "CKPT", "--gates", "ajar"], "gates is 'ajar'"),
        (["bench", "dsn-navon", "--gates", "trained"], "dsn-navon has random weights"),
        (["bench", "concat-40", "--gates", "paper"], "no skip ratio for concat-40"),
        (["bench", "CKPT", "--against", "tvm"], "unknown baseline 'tvm'"),
        (["bench", "CKPT", "--device", "cuda"], "device is 'cuda'"),
        (["bench", "CKPT", "--dtype", "float16"], "dtype is torch.float16"),
        (["bench", "CKPT", "--dtype", "half-baked"], "dtype is 'half-baked'"),
        (["bench", "CKPT", "--threads", "0"], "'--threads'"),
        (["bench", "CKPT", "--pin", "all"], "pin is 'all'; expected numbers of cores, such as 0,2-3"),
        (["bench", "CKPT", "--pin", "9999"], "which this process may use"),
        (["bench", "CKPT", "--json", "tiny.toml/bench.json"], "tiny.toml is a file"),
        (["timeline", "dsn-navon", "--gates", "trained"], "dsn-navon has random weights"),
        (["timeline", "CKPT", "--batch", "0"], "'--batch'"),
        (["timeline", "CKPT", "--picture", "layers.gif"], "picture is '.gif'"),
        (["timeline", "CKPT", "--trace", "tiny.toml/trace.json"], "tiny.toml is a file"),
        (["timeline", "CKPT", "--costs", "tiny.toml/costs.json"], "tiny.toml is a file"),
        (["timeline", "CKPT", "--pin", "9999"], "which this process may use"),
        (["info", "--json", "."], "is a folder or a device"),
        (["info", "--json", "/dev/null"], "is a folder or a device"),
        (["eval", "absent.safetensors"], "no checkpoint at absent.safetensors"),
        (["eval", "RECIPE"], "is no safetensors file"),
        (["eval", "BARE"], "choose with --kind"),
        (["eval", "BARE", "--kind", "imagenet"], "unknown data kind 'imagenet'"),
        (["eval", "CKPT", "--kind", "navon-idx"], "data folder is None"),
        (["eval", "CKPT", "--kind", "navon-idx", "--data", "."], "no t10k-images-idx3-ubyte"),
        (["eval", "CKPT", "--kind", "navon-sklearn", "--task", "coarse"], "task is 'coarse'"),
        (["eval", "CKPT", "--kind", "navon-sklearn", "--backend", "abacus"], "backend is 'abacus'"),
        (["train", "absent"], "no recipe 'absent'"),
        (["train", "RECIPE", "--epochs", "0"], "recipe tiny"),
        (
            ["train", "RECIPE", "--ungated-epochs", "9"],
            "ungated_epochs 9 and settled_epochs 0 are more than the 2 epochs",
        ),
        (["train", "CKPT"], "is no TOML"),
        (["demo", "--checkpoint", "absent.safetensors"], "no checkpoint at absent.safetensors"),
        (["demo", "--checkpoint", "CKPT", "--images", "3"], "'--images'"),
        (["demo", "--checkpoint", "CKPT", "--report", "tiny.toml/report.html"], "tiny.toml is a file"),
    ]


@pytest.mark.parametrize(
    "arguments, message", cases(), ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_one_line(dsn, checkpoint, bare_checkpoint, recipe, arguments, message):
    before = set(Path.cwd().iterdir())
    named = {"CKPT": str(checkpoint), "BARE": str(bare_checkpoint), "RECIPE": str(recipe)}
    status, out, err = dsn(*[named.get(argument, argument) for argument in arguments])
    assert (status, out) == (2, "")
    assert err.startswith("dsn: error: ") and err.count("\n") == 1 and err.endswith("\n")
    assert message in err
    assert set(Path.cwd().iterdir()) == before


def test_cut_short_checkpoint(dsn, checkpoint, tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(checkpoint.read_bytes()[:-100])
    status, _, err = dsn("bench", short)
    assert status == 2 and "cut short" in err and err.count("\n") == 1


def test_read_only_folder(dsn, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    status, _, err = dsn("info", "--json", "info.json")
    assert status == 2 and "is read-only" in err


def test_full_disk_leaves_nothing(dsn, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = dsn("info", "--json", "info.json")
    assert status == 2 and "No space left on device" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error, status, message",
    [
        (KeyboardInterrupt(), 130, "dsn: interrupted\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a.npz"),
            2,
            "dsn: error: a.npz: No such file or directory\n",
        ),
        (ModuleNotFoundError("no", name="tensorboard"), 2, "dsn: error: this command needs the package tensorboard; "),
        (cli.WrongAnswer("differs"), 1, "dsn: error: differs\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_command_raises(dsn, monkeypatch, error, status, message):
    from dsn_kernels.cli import info

    def fails():
        raise error

    monkeypatch.setattr(info, "collect", fails)
    got, out, err = dsn("info")
    assert (got, out) == (status, "") and err.startswith(message) and err.count("\n") == 1


def test_an_error_of_ours_is_not_hidden(dsn, monkeypatch):
    from dsn_kernels.cli import info

    def fails():
        raise AssertionError("ours")

    monkeypatch.setattr(info, "collect", fails)
    monkeypatch.setattr("sys.argv", ["dsn", "info"])
    with pytest.raises(AssertionError, match="ours"):
        cli.main()


def test_without_arguments_there_is_help(dsn):
    status, out, err = dsn()
    assert (status, err) == (0, "") and out.startswith("Usage: dsn ") and "bench" in out
