"""benchmarks/gpu.sh, rehearsed without a GPU and with everything going wrong that can, each in a step of its own."""

import json
import subprocess
import sys

import pytest
from gpu_script import BENCHMARKS, module, shell

from csrc.simt.build import MissingError
from csrc.simt.host_runner import load_simt
from dsn_kernels.measure import Latency
from dsn_kernels.measure.rows import bench_row

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """gpu.json of a rehearsal in which a kernel hangs, one is wrong, one faults and packages are missing."""
    try:
        load_simt()
    except MissingError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("gpu")
    done = shell(str(out), "--rehearse", "--inject", "hang,wrong,fault,missing")
    assert done.returncode == 1, done.stdout + done.stderr
    document = json.loads((out / "gpu.json").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["gpu.json", "steps.log"]
    return document


def steps(document):
    return {step["step"]: step for step in document["steps"]}


def test_every_step_has_an_outcome(rehearsed):
    phases, scale = module("gpu.phases"), module("gpu.plan").Scale(rehearsal=True)
    planned = [step.name for phase in phases.PHASES for step in phase.steps(scale)]
    assert sorted(steps(rehearsed)) == sorted(planned)
    expected = {phases.FAULTS["hang"]: "killed", phases.FAULTS["fault"]: "died"}
    ended = {name: step["outcome"] for name, step in steps(rehearsed).items() if step["outcome"] != "done"}
    without_triton = {name: "failed" for name in planned if name.startswith("triton")}
    assert ended == expected | without_triton


def test_a_kernel_that_hangs_is_killed_when_its_time_is_over(rehearsed):
    step = steps(rehearsed)["kind residual stage"]
    assert step["said"].startswith("out of time")
    (entry,) = [e for e in rehearsed["kinds"] if e["kind"] == "residual stage"]
    assert entry["failed"].startswith("killed: out of time")
    others = [e for e in rehearsed["kinds"] if e["kind"] != "residual stage"]
    assert {e["kind"] for e in others} == set(module("gpu.plan").KINDS) - {"residual stage"}
    assert all(e["right"] and e["macs_right"] for e in others)


def test_a_kernel_that_is_wrong_says_by_how_much(rehearsed):
    by_model = {entry["model"]: entry for entry in rehearsed["correct"] if entry.get("backend") == "cuda"}
    wrong = by_model.pop("skipnet-110-rnn")
    assert not wrong["right"] and wrong["error"] > wrong["allowed"]
    assert wrong["said"].startswith(f"wrong by {wrong['error']:.2e} of its norm")
    plan = module("gpu.plan")
    assert set(by_model) == {*plan.Scale(rehearsal=True).checked} - {"skipnet-110-rnn"}
    assert all(entry["right"] and entry["macs_right"] and entry["batch"] >= 8 for entry in by_model.values())


def test_a_kernel_that_faults_takes_its_own_rows_alone(rehearsed):
    assert steps(rehearsed)["ours gunn-15"]["said"] == "SIGSEGV"
    rows = [row for row in rehearsed["rows"] if row["model"] != "gunn-15"]
    assert [row for row in rehearsed["rows"] if row["model"] == "gunn-15"] == [
        {"model": "gunn-15", "failed": "died: SIGSEGV"}
    ]
    plan = module("gpu.plan")
    scale = plan.Scale(rehearsal=True)
    planned = {
        (network.model, batch, setting)
        for network in plan.TIMED.values()
        for batch in scale.batches(network)
        for setting in network.settings
        if network.model != "gunn-15"
    }
    assert {(row["model"], row["batch"], row["gates"]) for row in rows} == planned
    assert not any("failed" in row for row in rows)


def test_missing_packages_fail_where_they_are_needed(rehearsed):
    assert {step["said"].split(":")[0] for name, step in steps(rehearsed).items() if name.startswith("triton")} == {
        "UserError"
    }
    failed = [e for e in rehearsed["baselines"] if "failed" in e]
    assert {e["name"] for e in failed} == {"tensorrt"}
    assert {e["failed"] for e in failed} == {"ModuleNotFoundError: No module named 'torch_tensorrt'"}
    assert "host_synchronisations" in rehearsed and rehearsed["tests"][0]["exit_status"] == 0
    assert {e["said"] for e in rehearsed["sanitizer"]} == {"ERROR SUMMARY: 0 errors"}


def test_rows_are_those_of_dsn_bench_with_their_baselines(rehearsed):
    plain = {"eager", "channels_last", "channels_last graph", "compile default"}
    tuned = plain | {"compile reduce-overhead", "compile max-autotune"}
    times = [Latency.of([1.0])] * 2
    like = set(bench_row({"batch": 1, "gates": "", "draws": 1, "dtype": "", "backend": ""}, *times, {}, 1, 1, 1))
    for row in rehearsed["rows"]:
        if "failed" in row:
            continue
        # The tuning modes have the first batches too, of the one network that they are asked for.
        assert set(row["baselines_ms"]) == (tuned if row["model"] == "concat-bc-100" else plain)
        assert like | {"model"} <= set(row)
        best = min(latency["median"] for latency in row["baselines_ms"].values())
        assert row["speedup_vs_best"] == pytest.approx(best / row["ours_ms"]["median"])
    gradual = {e["name"] for e in rehearsed["baselines"] if e["model"] == "gunn-15"}
    assert gradual == plain | {"eager gunn-15"}, "dense runs do not hang on ours"


def test_a_rehearsal_says_so(rehearsed):
    assert rehearsed["rehearsal"] is True and set(rehearsed["injected"]) == {"hang", "wrong", "fault", "missing"}
    assert {"schema", "device", "torch", "commit", "machine", "environment", "dtype", "seconds"} <= set(rehearsed)


def test_bars_of_a_rehearsal_are_no_measurement(rehearsed, tmp_path):
    bars = module("gpu_bars")
    assert all("measured" not in bar and "met" not in bar for bar in bars.bars(rehearsed))
    assert "| rehearsed, not measured, by batch |" in bars.table(rehearsed)
    measured = bars.bars(rehearsed | {"rehearsal": False})
    assert all("measured" in bar for bar in measured)
    assert [set(a["rehearsed"]) for a in bars.bars(rehearsed)] == [set(a["measured"]) for a in measured]
    (tmp_path / "gpu.json").write_text('{"rows": []}')
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_bars.py"), str(tmp_path / "gpu.json")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "does not say whether it was a rehearsal" in done.stderr
