"""The queue of gates that learn: what it judges, and the time that it adds to results that are there."""

import json

import pytest
import torch

import dsn_kernels
import dsn_models
from benchmarks import gates
from dsn_models.data import open_dataset
from tests.networks import randomise

SIZES = {"image_size": 16, "block_layers": (1, 1)}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A queue of two arms of a second each, whose results go to a folder of their own."""
    data = {"kind": "navon-sklearn", "train_images": 16, "test_images": 40, "options": {"canvas": 16, "glyph": 4}}
    base = {"model": "dsn-navon", "options": SIZES, "data": data, "train": {"epochs": 1, "batch": 8}}
    arms = {"digits-gated": (base, {}), "digits-dense": (base, {"train": {"ungated_epochs": 1}})}
    torch.manual_seed(0)
    start = dsn_models.save(randomise(dsn_models.create("dsn-navon", **SIZES)), tmp_path / "start.safetensors")
    for name, value in {"ARMS": arms, "RESULTS": tmp_path, "CHECKPOINT": start, "SECONDS": 0.0}.items():
        monkeypatch.setattr(gates, name, value)
    monkeypatch.setattr(gates, "BATCHES", {1: 3, 8: 2, 64: 1})
    return tmp_path


@pytest.mark.long
def test_latency_is_written_and_added_without_training(small):
    runs = small / "runs"
    written = {arm: gates.run(arm, 0, runs, None) for arm in ("digits-gated", "digits-dense")}
    dense, gated = (json.loads(written[arm].read_text()) for arm in ("digits-dense", "digits-gated"))
    assert "latency" not in dense and "controls" not in dense
    rows = gated["latency"]["rows"]
    assert [(row["batch"], row["images"]) for row in rows] == [(1, 3), (8, 16)]  # there are fewer images than 64
    assert gated["latency"]["threads"] == gates.THREADS and gated["latency"]["machine"] == gated["machine"]
    for row in rows:
        assert row["saved"] == pytest.approx(1 - row["own_ms"]["median"] / row["open_ms"]["median"])
        assert row["interval"][0] <= row["saved"] <= row["interval"][1] and 0 <= row["macs_saved"] < 1
    before = {key: value for key, value in gated.items() if key != "latency"}
    written["digits-gated"].write_text(json.dumps(before))
    assert gates.run("digits-gated", 0, runs, None) is None
    assert gates.time_again("digits-gated", 0, runs, None).startswith("batch 1: ")
    after = json.loads(written["digits-gated"].read_text())
    assert after.pop("latency")["rows"][0]["macs_saved"] == rows[0]["macs_saved"] and after == before
    assert gates.time_again("digits-dense", 0, runs, None) == "has no gates that learned"
    assert gates.time_again("digits-gated", 1, runs, None) == "has no result"
    assert gates.time_again("digits-gated", 0, small, None).startswith("has no checkpoint ")


@pytest.mark.long
def test_what_gates_save_of_the_macs_is_what_the_kernels_count(small):
    model = dsn_models.load(gates.CHECKPOINT)
    test = open_dataset("navon-sklearn", None, False, 40, canvas=16, glyph=4)
    threads = torch.get_num_threads()
    row, _ = gates.time_gates(dsn_kernels.accelerate(model), test)["rows"]
    assert torch.get_num_threads() == threads
    chosen = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:3]
    fast, images = dsn_kernels.accelerate(model), test.batch(chosen)[0]
    fast(images)
    own = fast.last_macs.sum().item()
    fast(images, forced_gates={name: torch.ones(3, count) for name, count in fast.layers.items()})
    assert row["macs_saved"] == pytest.approx(1 - own / fast.last_macs.sum().item())
