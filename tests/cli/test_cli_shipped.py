"""The network that the package ships, as ``dsn demo`` shows it without options."""

import json

import pytest

from dsn_kernels.cli.demo import CHECKPOINT
from dsn_models import checkpoints


def test_shipped_checkpoint_is_small_and_skips():
    assert CHECKPOINT.stat().st_size < 1_000_000
    test = checkpoints.read_metadata(CHECKPOINT)["test"]
    assert test["coarse"]["skipped"] > 0 and test["fine"]["skipped"] > 0


@pytest.mark.slow
def test_demo_without_options(start_dsn, tmp_path):
    process = start_dsn("demo", "--json", "demo.json")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0 and out == "", err
    document = json.loads((tmp_path / "demo.json").read_text())
    trained = checkpoints.read_metadata(CHECKPOINT)["test"]
    assert document["model"] == "dsn-navon-digits" and document["reference"]["same_gates"] == 1
    for branch in ("coarse", "fine"):  # of other test images than those of its training run
        assert abs(1 - document["tasks"][branch]["error"]["mean"] - trained[branch]["accuracy"]) < 0.05
        assert abs(document["skipped"][branch]["mean"] - trained[branch]["skipped"]) < 0.05
    assert document["macs_executed"]["mean"] < document["macs_dense"]
    assert (tmp_path / "dsn-demo.html").stat().st_size > 10_000
