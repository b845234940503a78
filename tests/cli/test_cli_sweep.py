"""``dsn sweep`` and ``dsn report`` as a user runs them."""

import json
import shutil

import pytest

import dsn_models
from dsn_models import checkpoints

QUICK = ("--images", 40, "--seconds", 0, "--threads", 1)


def test_sweep_prints_the_front_and_draws_it(dsn, checkpoint, tmp_path):
    before = checkpoint.read_bytes()
    status, out, err = dsn("sweep", checkpoint, "--steps", 1, *QUICK, "--plot", "curve.svg")
    assert status == 0 and "all open" in out and "of dense" in out, err
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml") and checkpoint.read_bytes() == before


def test_budget_writes_the_operating_point(dsn, checkpoint, tmp_path):
    budget = ("--steps", 1, "--budget", "macs=0.9")
    status, out, _ = dsn("sweep", checkpoint, *QUICK, *budget, "--out", "small.safetensors", "--json", "-")
    document = json.loads(out)
    picked = document["pick"]
    assert status == 0 and document["checkpoint"] == "small.safetensors" and picked["pick"]["macs_fraction"] <= 0.9
    small = dsn_models.load("small.safetensors")
    assert dict(zip(("coarse", "fine"), small.config.thresholds, strict=True)) == picked["thresholds"]
    facts = checkpoints.read_metadata("small.safetensors")
    assert facts["operating_point"]["budget"] == "macs=0.9" and facts["recipe"]["name"] == "tiny"
    shutil.copy(checkpoint, tmp_path / "own.safetensors")
    status, out, _ = dsn("sweep", "own.safetensors", *QUICK, *budget)
    assert status == 0 and "operating point written to own.safetensors" in out and "on fresh images" in out
    assert checkpoints.read_metadata("own.safetensors")["operating_point"] == facts["operating_point"]


def test_report(dsn, checkpoint, tmp_path):
    status, out, err = dsn("report", checkpoint, *QUICK, "--sweep-steps", 0)
    assert status == 0 and out == "report: dsn-report.html\n", err
    assert "By class" in (tmp_path / "dsn-report.html").read_text()


def test_bench_under_load(dsn, tmp_path):
    options = ("--option", "stage_units=1,1,1", "--batch", "1,4", "--seconds", 0.02, "--plot", "load.svg")
    status, out, err = dsn("bench", "skipnet-38-rnn", *options, "--load", "qps=100,slo=60000ms")
    assert status == 0 and "skipping" in out and "up to 100 requests/s" in out, err
    assert (tmp_path / "load.svg").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("sweep", "CKPT", "--budget", "time=2ms"), "budget is 'time=2ms'"),
        (("sweep", "CKPT", "--budget", "macs=0.00001", *QUICK, "--steps", 1), "cannot be met; the nearest that can is"),
        (("sweep", "CKPT", "--per-layer"), "--per-layer is for picked thresholds; expected --budget with it"),
        (("sweep", "CKPT", "--plot", "curve.gif"), "picture is '.gif'"),
        (("sweep", "CKPT", "--task", "fine"), "task is 'fine'"),
        (("sweep", "absent.safetensors"), "no checkpoint at absent.safetensors"),
        (("bench", "CKPT", "--load", "qps=many"), "load is 'qps=many'"),
        (("bench", "CKPT", "--plot", "load.svg"), "expected --load with it"),
        (("report", "CKPT", "--out", "absent/report.html"), "no folder"),
        (("report", "CKPT", "--kind", "cifar-10"), "data folder is None"),
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
    assert status == 2 and "has no gate thresholds to sweep" in err
    status, _, err = dsn("report", "lenet.safetensors", "--kind", "navon-sklearn", "--images", 8)
    assert status == 2 and "has no gates to report on" in err
