"""benchmarks/gpu.sh and gpu.py, as far as they go without a GPU: a dry run with the host runner in the GPU's place."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from references import randomise
from small_models import SMALL

import dsn_kernels
import dsn_models
from dsn_kernels.measure import Latency
from dsn_kernels.measure.bench import BenchSettings, bench
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.rows import bench_row
from dsn_kernels.nn.network import Network, Target
from dsn_models.errors import UserError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def small_model():
    torch.manual_seed(0)
    return randomise(dsn_models.create("concat-bc-100", **{**SMALL["concat-bc-100"], "block_layers": (1, 1, 1)}))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("gpu_script", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dry(script, monkeypatch):
    """gpu.py with a small model, the host runner for the GPU, and every time one millisecond."""
    from dsn_kernels.nn.plan_runner import load_simt

    try:
        load_simt()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(script, "BATCHES", (1, 2))
    tiny = {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "image_size": 8}
    skipping = script.Family("skipnet-38-rnn", 0.5, 1.7, (1, 2), tiny)
    updated = script.Family("gunn-15", 0.0, 1.0, (1,), {"widths": (8,), "segments": (2,), "image_size": 8}, "resnet-20")
    monkeypatch.setattr(
        script, "FAMILIES", (skipping, updated, script.Family("none", 0.5, 1.0, (1,), {"image_size": 8}))
    )
    real = script.make_model
    monkeypatch.setattr(
        script, "make_model", lambda name=None, **options: real(name, **options) if options else small_model()
    )
    monkeypatch.setattr(script, "images", lambda batch, config=None: torch.randn(batch, 3, 8, 8))
    monkeypatch.setattr(dsn_kernels, "accelerate", lambda model, dtype, **_: Network(model, Target("simt", dtype)))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(script, "graphed", lambda call: call)
    monkeypatch.setattr(script, "observe", lambda call: [])

    def interleave(calls, deadline):
        for call in calls.values():
            call()
        return {name: Latency.of([1.0, 1.0]) for name in calls}

    monkeypatch.setattr(script, "interleave", interleave)
    return script


def test_a_dry_run_writes_the_schema_of_dsn_bench(dry, tmp_path, monkeypatch):
    written = []
    document = dry.Document(tmp_path / "gpu.json")
    monkeypatch.setattr(dry, "compiled", lambda model, x, mode: lambda: written.append(mode))
    dry.measure(document, 600)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [(r["batch"], r["gates"]) for r in found["rows"]] == [(b, s) for b in (1, 2) for s in dry.SETTINGS]
    assert found["host_synchronisations"] == {"launches": [], "graph": []}
    assert set(found["missing"]) == {"tensorrt, batch 1", "tensorrt, batch 2"}
    assert found["missing"]["tensorrt, batch 1"].startswith("ModuleNotFoundError: No module named")
    expected = {"eager", "channels_last", "channels_last graph", "compile max-autotune", "compile reduce-overhead"}
    for row in found["rows"]:
        assert set(row["baselines_ms"]) == expected
        assert row["speedup_vs_best"] == 1
    kinds = [(r["model"], r["batch"], r["gates"]) for r in found["families"]]
    own = [("skipnet-38-rnn", b, s) for b in (1, 2) for s in ("open", "random:0.5", "equal:0.5")]
    assert kinds == [*own, ("gunn-15", 1, "open")]
    plain = {"eager", "channels_last", "channels_last graph", "compile default graph"}
    assert [set(r["baselines_ms"]) for r in found["families"]] == [plain] * 6 + [plain | {"eager gunn-15"}]
    assert found["families_missing"]["none"].startswith("UserError: unknown")
    settings = BenchSettings(batches=(1,), gates=(GateSetting("open"),), against=("eager",), seconds=0.01)
    like = bench(small_model(), "concat-bc-100", settings)
    times = [Latency.of([1.0])] * 2
    facts = set(list(like["rows"][0])[:5])
    assert facts == {"batch", "gates", "draws", "dtype", "backend"}
    assert set(found["rows"][0]) == facts | set(bench_row({"batch": 1}, *times, {}, 1, 1, 1)) <= set(like["rows"][0])
    written_by_environment = {"schema", "device", "torch", "commit", "machine"}
    assert set(like) - set(found) <= written_by_environment | {"affinity", "energy"}, "the latter are the CPU's"


def test_what_was_measured_is_kept(dry, tmp_path, monkeypatch):
    """The time is over after the first batch's rows: they are there, the rest is named."""
    document = dry.Document(tmp_path / "gpu.json")

    def cut(calls, deadline):
        if any(name.startswith(("compile", "tensorrt")) for name in calls):
            raise AssertionError("no baseline is built when the time is over")
        if (tmp_path / "gpu.json").exists() and json.loads((tmp_path / "gpu.json").read_text()).get("rows"):
            raise KeyboardInterrupt
        return {name: Latency.of([1.0]) for name in calls}

    monkeypatch.setattr(dry, "interleave", cut)
    with pytest.raises(KeyboardInterrupt):
        dry.measure(document, 600)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["gates"] for row in rows] == list(dry.SETTINGS)


def test_a_wrong_answer_is_not_timed(dry, tmp_path, monkeypatch):
    wrong = Network.forward
    monkeypatch.setattr(Network, "forward", lambda *a, **k: tuple(y + 1 for y in wrong(*a, **k)))
    with pytest.raises(SystemExit, match="wrong answer: error .* nothing was timed"):
        dry.measure(dry.Document(tmp_path / "gpu.json"), 600)
    assert not (tmp_path / "gpu.json").exists()


def test_notes_add_to_the_document(script, tmp_path):
    path = tmp_path / "gpu.json"
    for name in ("tests", "sanitizer"):
        script.Document(path).set(notes={**script.Document(path).content.get("notes", {}), name: "ok"})
    assert json.loads(path.read_text()) == {"notes": {"tests": "ok", "sanitizer": "ok"}}


def shell(*arguments, **environment):
    return subprocess.run(
        ["bash", str(BENCHMARKS / "gpu.sh"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )


def test_usage():
    done = shell()
    assert (done.returncode, done.stderr) == (2, "usage: bash benchmarks/gpu.sh OUT_DIR\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(tmp_path):
    done = shell(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"no GPU that torch {torch.__version__} can use; run this on a machine with one\n"


class FakeEvents:
    """A device on which a call takes as long as it says, and whose second-level cache has 40 bytes."""

    def __init__(self, script, monkeypatch):
        self.clock, self.log = 0.0, []
        fake = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = fake.clock

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                return end.at - self.at

        class Graph:
            def replay(self):
                fake.run("replay", 2.0)

        class Flush:
            def zero_(self):
                fake.run("flush", 100.0)

        def empty(size, dtype, device):
            assert (size, dtype, device) == (80, torch.uint8, "cuda"), "twice the cache"
            return Flush()

        cache = type("Properties", (), {"L2_cache_size": 40})
        for name, value in {"Event": Event, "CUDAGraph": Graph, "get_device_properties": lambda i: cache}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(script.torch, "empty", empty)
        self.graph = Graph()

    def run(self, name, ms):
        self.clock += ms
        self.log.append(name)


def test_calls_that_are_no_replays_find_the_cache_flushed(script, monkeypatch):
    fake = FakeEvents(script, monkeypatch)
    monkeypatch.setattr(script, "TURN_MS", 10.0)
    monkeypatch.setattr(script, "ROUNDS", 2)
    found = script.interleave({"eager": lambda: fake.run("eager", 5.0), "graph": fake.graph.replay}, float("inf"))
    assert {name: latency.median for name, latency in found.items()} == {"eager": 5.0, "graph": 2.0}, "without flushes"
    timed = ["flush", "eager"]
    first = ["eager", *timed * 3, "replay", *["replay"] * 3]
    assert fake.log == first + 2 * ["eager", *timed * 2, "replay", *["replay"] * 5]


FAKE_PYTHON = """#!/bin/sh
case "$*" in
  -) echo 9.0a ;;
  *) echo "$*" >>"$LOG"; case "$*" in *"$FAILS"*) exit 1 ;; esac ;;
esac
"""


@pytest.fixture
def dry_shell(tmp_path):
    """gpu.sh with an interpreter that only logs: exit code, standard error, calls of gpu.py without --out."""
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def run(seconds="525", fails="nothing"):
        log = tmp_path / "calls"
        log.unlink(missing_ok=True)
        environment = {"PYTHON": str(python), "LOG": str(log), "FAILS": fails, "GPU_SECONDS": seconds}
        done = shell(str(tmp_path / "out"), **environment)
        calls = log.read_text().splitlines() if log.exists() else []
        return done.returncode, done.stderr, [call.split("gpu.json ")[-1] for call in calls]

    return run


def test_the_script_measures_between_tests_and_sanitizer(dry_shell):
    code, error, calls = dry_shell()
    assert (code, error) == (0, "")
    assert calls[:3] == ["setup.py build_ext --inplace", "environment", "-m pytest -q -x tests/cuda"]
    assert calls[3].startswith("note tests")
    seconds = int(calls[4].removeprefix("measure --seconds "))
    assert 420 <= seconds <= 525 - 80 - 15, "the sanitizer's time and some more is kept"
    assert calls[5].startswith("note sanitizer")


def test_a_script_whose_time_is_over_says_what_it_left_out(dry_shell):
    code, _, calls = dry_shell(seconds="60")
    assert code == 0
    assert "note measure cut short" in calls and not any(call.startswith("measure") for call in calls)


def test_a_build_or_a_measurement_that_fails(dry_shell):
    code, error, calls = dry_shell(fails="setup.py")
    assert code == 1 and error.startswith("the build failed or took too long") and len(calls) == 1
    code, _, calls = dry_shell(fails="measure --seconds")
    assert code == 1 and calls[-1].startswith("note sanitizer"), "what is there is kept"
