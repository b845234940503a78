import json

import pytest
import torch

import dsn_models
from dsn_models.checkpoints import read_metadata
from dsn_models.convert import export_skipnet


def test_there_and_back(dsn, tmp_path):
    original = dsn_models.create("skipnet-38-rnn").eval()
    released = export_skipnet(original, tmp_path / "released.pth")
    status, out, _ = dsn("convert", released, "ours.safetensors", "--json", "-")
    assert (status, json.loads(out)) == (
        0,
        {"schema": 1, "checkpoint": "ours.safetensors", "format": "skipnet", "model": "skipnet-38-rnn", "classes": 10,
         "parameters": 571_913, "untrained": [],
         "normalisation": "mean 0.4914 0.4822 0.4465, std 0.2023 0.1994 0.201 "
                          "(CIFAR-10's, of the SkipNet authors' networks)"},
    )  # fmt: skip
    assert dsn_models.load("ours.safetensors").config == original.config
    assert dsn("convert", "ours.safetensors", "again.pth", "--to", "skipnet")[0] == 0
    first, again = (torch.load(path, weights_only=True)["state_dict"] for path in (released, "again.pth"))
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_the_table_and_the_default_name(dsn, tmp_path):
    export_skipnet(dsn_models.create("skipnet-38-ff"), tmp_path / "released.pth")
    status, out, _ = dsn("convert", "released.pth")
    assert status == 0 and "skipnet-38-ff" in out and "1,148,798" in out
    assert (tmp_path / "released.safetensors").is_file()


def test_a_checkpoint_carries_the_normalisation_known_or_given(dsn, tmp_path):
    export_skipnet(dsn_models.create("skipnet-38-rnn"), tmp_path / "released.pth")
    assert dsn("convert", "released.pth")[0] == 0
    kept = read_metadata("released.safetensors")
    known = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    assert kept["data"].items() >= known.items() and kept["data"]["classes"]["fine"][3] == "cat"
    assert kept["source"] == {"file": "released.pth", "format": "skipnet", "arch": "skipnet-38-rnn", "untrained": []}
    status, out, _ = dsn("convert", "released.pth", "--mean", "0.5,0.5,0.5", "--std", "0.25, 0.25, 0.25")
    assert status == 0 and "mean 0.5 0.5 0.5, std 0.25 0.25 0.25 (as given)" in out
    assert "skipnet: the SkipNet authors' SkipNets" in out
    assert read_metadata("released.safetensors")["data"].items() >= {"mean": [0.5] * 3, "std": [0.25] * 3}.items()
    export_skipnet(dsn_models.create("skipnet-38-rnn", classes=7), tmp_path / "seven.pth")
    status, out, _ = dsn("convert", "seven.pth")
    assert status == 0 and "not known; give it by --mean and --std" in out
    assert read_metadata("seven.safetensors")["data"] == {}


def test_two_conversions_are_the_same_bytes(dsn, tmp_path):
    export_skipnet(dsn_models.create("skipnet-38-rnn"), tmp_path / "released.pth")
    for out in ("a.safetensors", "b.safetensors"):
        assert dsn("convert", "released.pth", out)[0] == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("command", ["eval", "sweep", "report", "bench", "timeline"])
def test_released_weights_in_place_of_a_checkpoint_are_sent_to_convert(dsn, tmp_path, command):
    torch.save({"conv1.weight": torch.ones(3)}, tmp_path / "x.pth")
    status, out, err = dsn(command, "x.pth")
    assert (status, out, err.count("\n")) == (2, "", 1) and "convert its weights first: dsn convert x.pth" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.pth"], "no file absent.pth"),
        (["released.pth", "--classes", "100"], "the weights are of 10 classes, 100 were asked for"),
        (["released.pth", "--mean", "0,0,0"], "--std is missing; --mean and --std go together"),
        (
            ["released.pth", "--mean", "0,x,0", "--std", "1,1,1"],
            "--mean is '0,x,0'; expected a number for each channel",
        ),
        (
            ["released.pth", "--mean", "0,0", "--std", "1,1"],
            "mean is (0.0, 0.0); expected a finite number for each of the 3",
        ),
        (["released.pth", "--model", "resnet-20"], "model is 'resnet-20'; a skipnet file is for one of skipnet-38-rnn"),
        (["released.pth", "released.pth"], "released.pth is the file to convert"),
        (["released.pth", "released.pth/x.safetensors"], "released.pth is a file"),
        (["released.pth", "--to", "onnx"], "--to is 'onnx'; only 'skipnet' can be written"),
        (["released.pth", "--to", "skipnet", "--classes", "10"], "leave them out with --to"),
        (["released.pth", "x.pth", "--to", "skipnet"], "is no safetensors file"),
    ],
)
def test_mistakes_are_one_line(dsn, tmp_path, arguments, said):
    export_skipnet(dsn_models.create("skipnet-38-rnn"), tmp_path / "released.pth")
    before = set(tmp_path.iterdir())
    status, out, err = dsn("convert", *arguments)
    assert (status, out) == (2, "")
    assert said in err and err.count("\n") == 1
    assert set(tmp_path.iterdir()) == before
