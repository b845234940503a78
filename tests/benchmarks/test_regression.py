"""What two measurements of one machine tell, and what noise explains."""

import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.regression import changes, read
from dsn_models import UserError

ROOT = Path(__file__).resolve().parents[2]


def row(batch, ms, noise=0.02, **baselines):
    times = {name: {"median": value, "p10": value, "p90": value} for name, value in baselines.items()}
    ours = {"median": ms, "p10": ms, "p90": ms}
    return {"batch": batch, "gates": "open", "ours_ms": ours, "noise": noise, "baselines_ms": times}


def document(*rows, **fields):
    machine = {"cpu": "abacus", "cores": 2}
    return {"schema": 1, "model": "m", "machine": machine, "threads": 2, "rows": list(rows), **fields}


def told(before, after):
    return {change.what: change.verdict for change in changes(document(*before), document(*after))}


def test_what_noise_does_not_explain_is_called():
    before = [row(1, 10.0), row(8, 10.0), row(64, 10.0)]
    after = [row(1, 10.3), row(8, 12.0), row(64, 8.0)]
    assert told(before, after) == {
        "batch 1, gates open": "=",
        "batch 8, gates open": "slower",
        "batch 64, gates open": "faster",
    }
    (change,) = changes(document(row(1, 10.0)), document(row(1, 12.0)))
    assert change.ratio == pytest.approx(1.2) and change.noise == pytest.approx(1.02**2 - 1)


def test_what_the_baselines_changed_by_is_the_machine():
    assert told([row(1, 10.0, openvino=20.0)], [row(1, 12.0, openvino=24.0)]) == {"batch 1, gates open": "="}
    assert told([row(1, 10.0, openvino=20.0)], [row(1, 12.0, openvino=16.0)]) == {"batch 1, gates open": "="}
    assert told([row(1, 10.0, openvino=20.0)], [row(1, 12.0, eager=99.0)]) == {"batch 1, gates open": "slower"}


def test_rows_of_an_earlier_schema_have_an_unknown_noise():
    old = row(1, 10.0)
    del old["noise"]
    assert told([old], [row(1, 11.0)]) == {"batch 1, gates open": "="}
    assert told([old], [row(1, 11.6)]) == {"batch 1, gates open": "slower"}
    assert told([old], [row(1, 11.0, noise=None)]) == {"batch 1, gates open": "="}


def test_kernels_are_compared_by_name():
    one = {"kernel": "head", "ours_ms": {"median": 1.0}, "noise": 0.01}
    two = copy.deepcopy(one)
    two["ours_ms"]["median"] = 2.0
    (change,) = changes(document(one), document(two))
    assert (change.what, change.verdict) == ("head", "slower")


@pytest.mark.parametrize("key, value", [("model", "n"), ("threads", 1), ("machine", {"cpu": "other", "cores": 2})])
def test_only_the_same_can_be_compared(key, value):
    with pytest.raises(UserError, match=f"^{key} was .* and is .*; only the same can be compared$"):
        changes(document(row(1, 1.0)), document(row(1, 1.0), **{key: value}))


def test_nothing_in_common():
    with pytest.raises(UserError, match="share no row"):
        changes(document(row(1, 1.0)), document(row(2, 1.0)))


def test_files(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(UserError, match="no results at .*; make bench writes them"):
        read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        read(path)
    for other in ([], {"schema": 2, "rows": []}, {"schema": 1}):
        path.write_text(json.dumps(other))
        with pytest.raises(UserError, match="holds no benchmark of schema 1"):
            read(path)
    path.write_text(json.dumps(document(row(1, 1.0))))
    assert read(path) == document(row(1, 1.0))


@pytest.fixture
def cpu():
    spec = importlib.util.spec_from_file_location("cpu", ROOT / "benchmarks" / "cpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_broken_promise_is_told_with_a_profile(cpu, monkeypatch, tmp_path):
    file = tmp_path / "gunn-15.json"
    times = {1: 1.0, 8: 1.6, 64: 2.0}
    found = [{"batch": batch, "gates": "open", "speedup_vs_best": faster} for batch, faster in times.items()]
    monkeypatch.setattr(cpu, "result_file", lambda name: file)
    monkeypatch.setattr(cpu, "profile", lambda run, batch, gates: (run.model, batch, gates))
    cpu.tell("gunn-15", {"gunn-15": {"rows": found}})
    written = json.loads(file.read_text())
    assert [promise["verdict"] for promise in written["promises"]] == ["BROKEN", "kept", "kept"]
    assert [promise["missed_by"] for promise in written["promises"]] == [pytest.approx(1 / 3), None, None]
    assert written["profiles"] == [["gunn-15", 1, "open"]]


def test_a_runs_own_options_outdo_the_command_lines(cpu, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(cpu.subprocess, "run", lambda command: called.append(command) or SimpleNamespace(returncode=0))
    assert cpu.measure("gunn-15-one-channel", tmp_path / "out.json", ["--against", "openvino", "--seconds=1"]) == 0
    assert called[0][-2:] == ["--against", ""] and "--seconds=1" in called[0]
