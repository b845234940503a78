"""``dsn sweep`` and ``dsn report`` as a user runs them."""

import io
import json
import re
import shutil
import webbrowser

import numpy as np
import pytest
import torch
from PIL import Image

import dsn_models
from dsn_kernels.tuning.operating_point import set_operating_point
from dsn_models import checkpoints

QUICK = ("--images", 40, "--seconds", 0, "--threads", 1)


def test_sweep_prints_the_front_and_draws_it(dsn, checkpoint, tmp_path):
    before = checkpoint.read_bytes()
    status, out, err = dsn("sweep", checkpoint, "--thresholds", 1, *QUICK, "--plot", "curve.svg")
    assert status == 0 and all(word in out for word in ("all open", "of dense", "coarse accuracy")), err
    assert "error" not in out
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml") and checkpoint.read_bytes() == before


@pytest.mark.long
def test_budget_writes_the_operating_point(dsn, checkpoint, tmp_path):
    budget = ("--thresholds", 1, "--budget", "macs=0.9")
    status, out, _ = dsn("sweep", checkpoint, *QUICK, *budget, "--out", "small.safetensors", "--json", "-")
    document = json.loads(out)
    picked = document["pick"]
    assert status == 0 and document["checkpoint"] == "small.safetensors" and picked["pick"]["macs_fraction"] <= 0.9
    small, expected = dsn_models.load("small.safetensors"), dsn_models.load(checkpoint)
    set_operating_point(expected, picked["thresholds"], picked["layer_thresholds"])
    assert small.config == expected.config
    for ours, theirs in zip(small.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    facts = checkpoints.read_metadata("small.safetensors")
    assert facts["operating_point"]["budget"] == "macs=0.9" and facts["recipe"]["name"] == "tiny"
    own = tmp_path / "own.safetensors"
    shutil.copy(checkpoint, own)
    before = own.read_bytes()
    for name in ("own-macs-0.9.safetensors", "own-macs-0.9-2.safetensors"):  # nothing is overwritten unasked
        status, out, _ = dsn("sweep", "own.safetensors", *QUICK, *budget)
        assert status == 0 and f"operating point written to {name}" in out and "on fresh images" in out
        assert checkpoints.read_metadata(name)["operating_point"] == facts["operating_point"]
    assert own.read_bytes() == before
    status, out, _ = dsn("sweep", "own.safetensors", *QUICK, *budget, "--in-place")
    assert status == 0 and "operating point written to own.safetensors" in out
    assert checkpoints.read_metadata("own.safetensors")["operating_point"] == facts["operating_point"]


@pytest.mark.long
def test_report(dsn, checkpoint, tmp_path, monkeypatch):
    opened = []
    browser = type("Browser", (), {"open": lambda self, url: opened.append(url)})()
    monkeypatch.setattr(webbrowser, "get", lambda: browser)
    status, out, err = dsn("report", checkpoint, *QUICK, "--thresholds", 0, "--pictures", "figures", "--open")
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    told = out.splitlines()
    assert status == 0 and told[2:] == ["report: dsn-report.html", f"pictures: figures ({len(files)} files)"], err
    assert told[0].startswith("Its own gates save, beside the same kernels with all gates open: time ")
    assert re.match("Kernels, all gates open, beside the (fastest of eager PyTorch|only dense runtime timed)", told[1])
    page = (tmp_path / "dsn-report.html").read_text()
    assert "By class" in page and "<h2>Other thresholds</h2>" not in page
    assert {"latency.svg", "latency.png", "features.png"} <= set(files)
    assert opened == [(tmp_path / "dsn-report.html").as_uri()]


@pytest.mark.long
def test_report_without_a_browser_is_written_all_the_same(dsn, checkpoint, tmp_path, monkeypatch):
    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    status, out, err = dsn("report", checkpoint, *QUICK, "--thresholds", 0, "--open", "--json", "-")
    assert status == 2 and err.startswith("dsn: error: no browser found to open dsn-report.html")
    assert err.count("\n") == 1 and (tmp_path / "dsn-report.html").exists()
    assert json.loads(out)["report"] == "dsn-report.html"


@pytest.fixture
def cifar(tmp_path):
    """``cifar(labels)`` writes an archive of random JPEG images with these labels and returns its folder."""

    def write(labels):
        pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        files = []
        for image in pixels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG")
            files.append(np.frombuffer(buffer.getvalue(), np.uint8))
        offsets = np.cumsum([0, *map(len, files)]).astype(np.int32)
        folder = tmp_path / "cifar"
        folder.mkdir(exist_ok=True)
        jpeg = np.concatenate([*files, np.empty(0, np.uint8)])
        arrays = {"jpeg": jpeg, "offsets": offsets, "labels": np.array(labels, np.uint8)}
        np.savez(folder / "cifar10-jpeg-test.npz", **arrays)
        return folder

    return write


@pytest.fixture
def skipnet():
    torch.manual_seed(0)
    return dsn_models.save(dsn_models.create("skipnet-38-rnn", stage_units=(1, 1, 1)), "skipnet.safetensors")


@pytest.mark.long
def test_other_data(dsn, skipnet, cifar):
    options = ("--kind", "cifar-10-jpeg", "--task", "fine", *QUICK, "--data")
    status, _, err = dsn("report", skipnet, *options, cifar([*range(9), 0, 3]), "--thresholds", 0)
    assert (status, err) == (0, "note: The data holds no image of class truck.\n")
    status, out, err = dsn("sweep", skipnet, *options, cifar([*range(9), 0, 3]), "--thresholds", 1)
    assert status == 0 and "truck" not in err, err
    for command in ("sweep", "report"):
        status, out, err = dsn(command, skipnet, *options, cifar([]))
        assert (status, out, err.count("\n")) == (2, "", 1) and "the test data is empty" in err
        # A network for other images, and one for other classes.
        status, out, err = dsn(command, skipnet, "--kind", "navon-sklearn", "--task", "fine", *QUICK)
        assert (status, out, err.count("\n")) == (2, "", 1) and "images have shape" in err
        status, out, err = dsn(command, skipnet, *options, cifar([1, 2, 3, 4]), "--task", "coarse")
        assert (status, out, err.count("\n")) == (2, "", 1) and "the model has 10 coarse classes, the data 2" in err


@pytest.mark.long
def test_bench_under_load(dsn, tmp_path):
    options = ("--option", "stage_units=1,1,1", "--batch", "1,4", "--seconds", 0.02, "--plot", "load.svg")
    status, out, err = dsn("bench", "skipnet-38-rnn", *options, "--load", "qps=100,slo=60000ms")
    assert status == 0 and "skipping" in out and "up to 100 requests/s" in out, err
    assert (tmp_path / "load.svg").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("sweep", "CKPT", "--budget", "time=2ms"), "budget is 'time=2ms'"),
        (
            ("sweep", "CKPT", "--budget", "macs=0.00001", *QUICK, "--thresholds", 1),
            "cannot be met; the nearest that can is",
        ),
        (("sweep", "CKPT", "--in-place"), "--in-place is for picked thresholds; expected --budget with it"),
        (("sweep", "CKPT", "--budget", "macs=0.9", "--in-place", "--out", "o"), "--out and --in-place are two places"),
        (("sweep", "CKPT", "--per-layer"), "--per-layer is for picked thresholds; expected --budget with it"),
        (("sweep", "CKPT", "--plot", "curve.gif"), "picture is '.gif'"),
        (("sweep", "CKPT", "--task", "fine"), "task is 'fine'"),
        (("sweep", "absent.safetensors"), "no checkpoint at absent.safetensors"),
        (("bench", "CKPT", "--load", "qps=many"), "load is 'qps=many'"),
        (("bench", "CKPT", "--plot", "load.svg"), "expected --load with it"),
        (("report", "CKPT", "--out", f"{__file__}/report.html"), "is a file; choose another place"),
        (("report", "CKPT", "--kind", "cifar-10"), "data folder is None"),
        (("report", "CKPT", "--against", "tvm"), "unknown baseline 'tvm'"),
        (("report", "CKPT", "--pictures", __file__), "is a file; expected a folder for pictures"),
        (
            ("sweep", "CKPT", *QUICK, "--thresholds", 1, "--budget", "latency=0.0001ms"),
            "the nearest that can is latency=",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value[:4])),
)
def test_one_line(dsn, checkpoint, arguments, message, tmp_path):
    status, out, err = dsn(*(checkpoint if argument == "CKPT" else argument for argument in arguments))
    assert (status, out) == (2, "") and message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_gates(dsn):
    dsn_models.save(dsn_models.create("lenet", image_size=64), "lenet.safetensors")
    status, _, err = dsn("sweep", "lenet.safetensors", "--kind", "navon-sklearn", "--images", 8)
    assert status == 2 and "has no gates; expected a network that skips layers" in err
    status, _, err = dsn("report", "lenet.safetensors", "--kind", "navon-sklearn", "--images", 8)
    assert status == 2 and "has no gates to report on" in err
