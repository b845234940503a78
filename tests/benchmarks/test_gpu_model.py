"""The prediction of the GPU kernels' time: how streams and events add up, and what the document shows of it."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu_model import families, model, predict
from benchmarks.gpu_model.map_work import ConvPace, Launch

ROOT = Path(__file__).resolve().parents[2]
PREDICTION = ROOT / "benchmarks" / "results" / "prediction-h200.concat-bc-100.json"


@pytest.fixture(autouse=True)
def few_registers(monkeypatch):
    monkeypatch.setattr(predict, "registers", lambda: {"kernel": 32})


def entry(blocks=0, waits_for=-1, marks=-1):
    return ("kernel", blocks, 256, 0, waits_for, marks)


def stem(stream, blocks=1, **work):
    return Launch("stem", stream, blocks=blocks, active=blocks, **work)


def test_a_stream_adds_up_and_two_run_side_by_side():
    alone = predict.NODE + predict.TRIPS["stem"] * predict.ROUND_TRIP
    one = predict.predict([[entry(1), entry(1)]], [stem(0), stem(0)])
    assert one == pytest.approx(2 * alone)
    two = predict.predict([[entry(1)], [entry(1), entry(1)]], [stem(0), stem(1), stem(1)])
    assert two == pytest.approx(2 * alone)


def test_an_event_holds_a_stream_back():
    alone = predict.NODE + predict.TRIPS["stem"] * predict.ROUND_TRIP
    waiting = [[entry(1), entry(marks=0), entry(1)], [entry(waits_for=0), entry(1)]]
    assert predict.predict(waiting, [stem(0), stem(0), stem(1)]) == pytest.approx(2 * alone)


def test_the_machine_is_shared_where_it_does_not_suffice():
    full = dict(blocks=predict.MULTIPROCESSORS, dram_bytes=int(predict.DRAM * 1e-3))  # a millisecond each
    alone = predict.predict([[entry(full["blocks"])]], [stem(0, **full)])
    both = predict.predict([[entry(full["blocks"])]] * 2, [stem(0, **full), stem(1, **full)])
    assert alone == pytest.approx(1e-3, rel=0.01)
    assert both == pytest.approx(2e-3, rel=0.01)
    half = {**full, "blocks": predict.MULTIPROCESSORS // 2}
    assert predict.predict([[entry(half["blocks"])]] * 2, [stem(0, **half), stem(1, **half)]) == pytest.approx(alone)


def test_a_block_takes_as_long_as_its_longest_sample():
    def latency(*chains):
        return predict.latency(Launch("block", 0, chains=list(chains)))

    assert latency((2, 14, 100), (3, 13, 900)) == latency((3, 13, 900)) > latency((2, 14, 100))
    shut = (latency((0, 16, 0)) - latency((0, 0, 0))) / 16
    assert shut == pytest.approx(predict.SHUT_TRIPS * predict.ROUND_TRIP)


def test_bars_name_what_is_missed():
    rows = [
        {"batch": b, "skipped": s, "ratio": 1.4, "realised_fraction": None if s == 0 else 0.9}
        for b in model.BATCHES
        for s in model.SKIPPED
    ]
    found = model.bars(rows, 0.5)
    assert [bar["met"] for bar in found] == [[], [64, 256, 1024], *[list(model.BATCHES)] * 3, [1]]
    text = model.table({"rows": [], "bars": found})
    assert "1: 1.40, 8: 1.40 | missed |" in text and "1024: 1.40 | met |" in text


def test_the_document_shows_the_committed_prediction():
    document = json.loads(PREDICTION.read_text())
    assert document["kind"].startswith("prediction, not a measurement")
    assert document["constants"] == predict.constants(), "made with other constants; write it again"
    assert model.table(document) in (ROOT / "docs" / "gpu-model.md").read_text()


def test_a_convolution_takes_longer_the_more_tiles_its_blocks_walk():
    def latency(active, **more):
        return predict.latency(Launch("conv2d", 0, blocks=4, active=active, mma=100 * active, **more))

    assert latency(0) == predict.ROUND_TRIP
    assert latency(4) == latency(3) < latency(5) == latency(8)
    pooling = latency(4, pools=True)
    assert pooling - latency(4) == pytest.approx(predict.POOL_TRIPS * predict.ROUND_TRIP)
    assert latency(4, pools=True, gates=2) - pooling == pytest.approx(2 * predict.GATE_TRIPS * predict.ROUND_TRIP)


def test_a_stage_takes_as_long_as_its_longest_sample_and_as_all_that_do_not_fit():
    def latency(*convs, l1=0, l2=0, **more):
        work = dict(cluster=2, maps=[(18, l1, l2)], paths=[((n,), 10) for n in convs])
        return predict.latency(Launch("resident_stage", 0, active=2 * len(convs), **work, **more))

    assert latency(20) == latency(4, 20) > latency(4) > latency(0)
    assert latency(20, l1=10**6) > latency(20) < latency(20, l2=10**6)
    assert latency(*[20] * 660) == pytest.approx(10 * latency(20))
    assert latency(20, gates=1) - latency(20) == pytest.approx(predict.GATE_TRIPS * predict.ROUND_TRIP)


def test_a_tile_of_a_convolution():
    """Stages hide trips, clusters and what is added to cost some, and more sums in flight hide a k-step's wait."""

    def seconds(mma=0, l2_bytes=0, **pace):
        launch = Launch("conv2d", 0, blocks=1, active=1, mma=mma, l2_bytes=l2_bytes, conv=ConvPace(**pace))
        return predict.conv_tile(launch) / predict.ROUND_TRIP

    first = predict.CONV_TRIPS
    assert [seconds(passes=n) for n in (1, 2, 5)] == pytest.approx([first, first + 1, first + 4])
    assert seconds(passes=5, ahead=2) == pytest.approx(first + 1.5)
    assert seconds(passes=5, ahead=0) == pytest.approx(first + 4), "gathered in its turn"
    assert seconds(adds=2, lists=True) == pytest.approx(first + 2 + predict.LIST_TRIPS)
    assert seconds(split=4) == pytest.approx(first + predict.SPLIT_TRIPS + 4 * predict.SUM_TRIPS)
    assert seconds(l2_bytes=64 * 700) == pytest.approx(first + 700 / predict.CLOCK / predict.ROUND_TRIP)
    eight, sixteen = (predict.conv_rate(ConvPace(step=n), 1) for n in (8, 16))
    assert eight == pytest.approx(2 * 51.2 / 151.2) and sixteen == 1
    assert predict.conv_rate(ConvPace(step=8), 2) == 1
    full = predict.MMA_MACS / 2048
    assert seconds(mma=1000, step=16) == pytest.approx(first + 1000 / full / predict.CLOCK / predict.ROUND_TRIP)
    assert seconds(mma=1000, step=8) > seconds(mma=1000, step=16)


def test_bars_of_a_family():
    rows = [
        {"batch": 8, "gates": kind, "ms": ms, "ratio": 1.6, "realised_fraction": 0.9}
        for kind, ms in (("open", 2.0), ("different", 1.0), ("equal", 0.8))
    ]
    found = families.bars_of(families.Family("net", 0.5, 1.7, (8,)), rows)
    assert [(bar["predicted"]["8"], bar["met"]) for bar in found] == [(1.6, []), (0.9, [8]), (0.8, [])]
    rows = [{"batch": 1, "gates": "open", "ms": 2.0, "ratio": 1.6, "realised_fraction": None, "eager_ms": 7.0}]
    found = families.bars_of(families.Family("net", 0.0, 1.0, (1,), against="other"), rows)
    assert [(bar["predicted"]["1"], bar["met"]) for bar in found] == [(1.6, [1]), (3.5, [1])]


def test_the_document_shows_the_committed_prediction_of_families():
    document = json.loads((ROOT / "benchmarks" / "results" / "prediction-h200.families.json").read_text())
    assert document["kind"].startswith("prediction, not a measurement")
    assert document["constants"] == families.constants(), "made with other constants; write it again"
    assert families.table(document) in (ROOT / "docs" / "gpu-model.md").read_text()
