"""``dsn eval --controls``: a network under other gates than its own."""

import json

import pytest

import dsn_models

DATA = ("--kind", "navon-sklearn", "--images", 40, "--threads", 1)


@pytest.mark.long
def test_controls_of_a_dual_network(dsn, checkpoint):
    status, out, err = dsn("eval", checkpoint, *DATA, "--controls", "--json", "-")
    assert status == 0, err
    found = json.loads(out)["controls"]
    assert found["images"] + found["search_images"] == 40
    assert set(found["under"]) == {"own", "another", "random", "static", "open"}
    for task in ("coarse", "fine"):
        own = found["under"]["own"][task]
        assert own["low"] <= own["accuracy"] <= own["high"]
        assert found["under"]["another"][task]["gain"] == own["accuracy"] - found["under"]["another"][task]["accuracy"]
    status, out, _ = dsn("eval", checkpoint, *DATA, "--controls")
    assert status == 0
    for word in ("another image's", "one pattern for all", "coarse: rank correlation", "mutual information"):
        assert word in out


@pytest.mark.long
def test_controls_of_a_network_that_halts(dsn):
    sizes = {"stage_units": (2, 2), "stage_widths": (4, 8), "stem_width": 4, "image_size": 64, "in_channels": 1}
    dsn_models.save(dsn_models.create("act-32", **sizes), "act.safetensors")
    status, out, err = dsn("eval", "act.safetensors", *DATA, "--task", "fine", "--controls", "--json", "-")
    assert status == 0, err
    result = json.loads(out)
    assert result["backend"] == "cpu" and result["fine"]["ran"] == [1.0, 1.0]  # it begins by running all of its units
    assert set(result["controls"]["under"]) == {"own", "another", "random", "static", "open"}


def test_a_network_without_gates_has_no_controls(dsn):
    dsn_models.save(dsn_models.create("lenet", image_size=64), "lenet.safetensors")
    status, out, err = dsn("eval", "lenet.safetensors", *DATA, "--task", "fine", "--controls")
    assert (status, out) == (2, "")
    assert "controls compare gates; the model is a LeNet, which has none" in err
