import json

import pytest
import torch

import dsn_models
from dsn_models.convert import export_skipnet


def test_there_and_back(dsn, tmp_path):
    original = dsn_models.create("skipnet-38-rnn").eval()
    released = export_skipnet(original, tmp_path / "released.pth")
    status, out, _ = dsn("convert", released, "ours.safetensors", "--json", "-")
    assert (status, json.loads(out)) == (
        0,
        {"schema": 1, "checkpoint": "ours.safetensors", "format": "skipnet", "model": "skipnet-38-rnn", "classes": 10,
         "parameters": 571_913},
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.pth"], "no file absent.pth"),
        (["released.pth", "--classes", "100"], "the weights are of 10 classes, 100 were asked for"),
        (["released.pth", "--model", "resnet-20"], "model is 'resnet-20'; a skipnet file is for one of skipnet-38-rnn"),
        (["released.pth", "released.pth"], "released.pth is the file to convert"),
        (["released.pth", "absent/x.safetensors"], "no folder"),
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
