"""benchmarks/gpu.sh and what it is made of; test_gpu_rehearsal.py runs the whole of it."""

import json
import time

import pytest
import torch
from gpu_script import BENCHMARKS, ROOT, module, shell

import csrc.simt.host_runner  # noqa: F401  (the backend "simt")
from dsn_kernels import Accelerated, Target


def row(model, gates, ms, batch=8, realised=None, **baselines):
    return {
        "model": model,
        "batch": batch,
        "gates": gates,
        "ours_ms": {"median": ms},
        "realised_fraction": realised,
        "baselines_ms": {name.replace("_", " "): {"median": value} for name, value in baselines.items()},
    }


def test_bars_of_a_measurement():
    bars = module("gpu_bars")
    rows = [
        row("skipnet-110-rnn", "open", 4.0, eager=9.0),
        row("skipnet-110-rnn", "random:0.5", 2.0, realised=0.9, eager=9.0, graph=3.0),
        row("skipnet-110-rnn", "equal:0.5", 1.9, realised=0.9, eager=9.0),
        row("gunn-15", "open", 1.0, eager=1.5, **{"eager gunn-15": 3.5}),
        {"model": "gunn-15", "failed": "died"},
    ]
    baselines = [{"model": "gunn-15", "batch": 8, "name": "eager gunn-15", "ms": {"median": 3.5}}]
    found = {
        bar["bar"]: (bar["measured"], bar["met"])
        for bar in bars.bars({"rehearsal": False, "rows": rows, "baselines": baselines})
    }
    assert found["skipnet-110-rnn, 50 % skipped: times the dense run"] == ({"8": 1.5}, [])
    assert found["skipnet-110-rnn, 50 % skipped: realised fraction"] == ({"8": 0.9}, [8])
    assert found["skipnet-110-rnn: equal patterns' time over different ones'"] == ({"8": 0.95}, [8])
    assert found["gunn-15: times dense sunn-15"] == ({"8": 1.5}, [8])
    assert found["gunn-15: times eager PyTorch"] == ({"8": 3.5}, [8])
    assert found["gaternet-resnet-164, 50 % skipped: times the dense run"] == ({}, [])


def test_usage():
    assert shell().returncode == 2
    done = shell("out", "--rehearse", "--inject", "flood")
    assert done.returncode == 2 and "inject is 'flood'; expected some of hang, wrong, fault, missing" in done.stderr
    assert "add --rehearse" in shell("out", "--inject", "hang").stderr
    done = shell("out", PYTHON="no-such-python")
    assert (done.returncode, done.stderr) == (2, "no interpreter no-such-python; set PYTHON to one that has torch\n")


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_line(tmp_path):
    done = shell(str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"no GPU that torch {torch.__version__} can use; run this on a machine with one\n"


def test_phases_leave_time_to_those_behind():
    """The build may take what the least times of the others leave, and all of it lies inside the script's time."""
    phases, plan = module("gpu.phases"), module("gpu.plan")
    steps = {phase.name: phase.steps(plan.Scale()) for phase in phases.PHASES}
    assert sum(phase.least for phase in phases.PHASES) <= 525 - 230
    assert list(steps)[:2] == ["build", "environment"] and list(steps)[-1] == "compilers"
    assert len(steps["tests"]) == len(list((ROOT / "tests" / "cuda").glob("test_*.py")))
    assert all(step.seconds >= 30 for phase in steps.values() for step in phase)


@pytest.mark.long
def test_every_kernel_has_a_kind():
    """What plans launch, but for what no network of the zoo has a launch of its own for."""
    plan, networks = module("gpu.plan"), module("gpu.networks")
    launched = {}
    for name, kind in plan.KINDS.items():
        fast = Accelerated(networks.make(kind.model, kind.options), Target("simt", torch.float16))
        streams = [s for part in fast.parts.values() for s in part.runner.schedule(3).timeline()]
        launched[name] = {entry[0].split("::")[-1].split("_kernel")[0] for stream in streams for entry in stream}
        assert set(kind.kernels) <= launched[name], name
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("network*.cuh"))
    kernels = {part.split("_kernel")[0] for part in sources.split("start<")[1:] if "_kernel" in part[:40]}
    elsewhere = {"store", "unit_gate", "first_equal", "place", "decide"}
    assert kernels - elsewhere == {kernel for kind in plan.KINDS.values() for kernel in kind.kernels}


@pytest.mark.long
def test_a_job_that_kills_itself_or_prints_is_no_trouble(tmp_path):
    """Processes by themselves: what they reported before they died is kept."""
    run, process, plan = module("gpu.run"), module("gpu.process"), module("gpu.plan")
    runner = run.Runner(tmp_path, plan.Scale(), 60)
    facts = {"section": "rows", "facts": {"model": "none"}, "fresh": True}
    for job, arguments in (("no_such_job", ()), ("tests", ("no/such/file.py",))):
        runner.run([process.Step(f"step {job}", job, 30, arguments, **facts)], time.monotonic() + 60)
    runner.run([process.Step("late", "tests", 30, (), **facts)], time.monotonic())
    runner.end()
    first, second, third = runner.document.content["steps"]
    assert first["outcome"] == "failed" and "No module named 'gpu.no_such_job'" in first["said"]
    assert second["outcome"] == "done" and runner.document.content["tests"][0]["exit_status"] == 4
    assert (third["outcome"], third["said"]) == ("not run", "no time left")
    rows = [row["failed"] for row in runner.document.content["rows"]]
    assert rows == [f"failed: {first['said']}", "not run: no time left"]
    assert "==== step tests\n" in (tmp_path / "steps.log").read_text()


def test_steps_begin_anew_where_a_forked_process_finds_no_device(tmp_path, monkeypatch):
    run, phases, plan = module("gpu.run"), module("gpu.phases"), module("gpu.plan")
    runner, ran = run.Runner(tmp_path, plan.Scale(), 60), []

    def record(steps, until, together=1):
        ran.append((steps[0].name, runner.context is runner.fresh))
        return [{"outcome": "failed" if runner.context is not runner.fresh else "done"}]

    monkeypatch.setattr(runner, "run", record)
    run.run_phases(runner, phases.PHASES[:3])
    runner.end()
    kind = f"kind {next(iter(plan.KINDS))}"
    assert ran == [("build", False), ("environment", False), ("environment", True), (kind, True)]


def test_an_entry_that_fails_is_one_all_the_same(capsys):
    report = module("gpu.process").Report(None)
    for error in (ValueError("two\nlines"), KeyboardInterrupt(), SystemExit(3)):
        with report.entry("rows", model="m") as found:
            found["half"] = True
            raise error
    with report.entry("rows", model="m") as found:
        found["whole"] = True
    said = [json.loads(line)[1] for line in capsys.readouterr().out.splitlines()]
    texts = ("ValueError: two", "KeyboardInterrupt", "SystemExit: 3")
    assert said == [*({"model": "m", "failed": text} for text in texts), {"model": "m", "whole": True}]


def test_tests_are_counted_as_far_as_they_go():
    lines = [
        "tests/a.py::one[x] PASSED [ 10%]\n",
        "tests/a.py::two FAILED\n",
        "tests/a.py::three SKIPPED (no)\n",
        "+++ Timeout +++\n",
    ]
    found = module("gpu.tests").count(iter(lines))
    assert found == {"passed": 1, "failed": 1, "skipped": 1, "error": 0, "said": "+++ Timeout +++"}


def test_the_sanitizer_is_found_in_the_toolkit(tmp_path, monkeypatch):
    sanitizer = module("gpu.sanitizer")
    tool = tmp_path / "compute-sanitizer" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitizer.find() == str(tool)
    tool.unlink()
    with pytest.raises(FileNotFoundError, match="neither on PATH nor in"):
        sanitizer.find()


@pytest.mark.long
def test_nothing_that_the_script_imports_needs_kornia_or_pydantic(subprocess_python):
    jobs = sorted(path.stem for path in (BENCHMARKS / "gpu").glob("*.py") if path.stem != "__init__")
    code = f"""
    import importlib, sys
    sys.path.insert(0, {str(BENCHMARKS)!r})
    from gpu import standins
    standins.block()
    import torch, dsn_kernels, dsn_models
    for job in {jobs!r}:
        importlib.import_module("gpu." + job)
    model = dsn_models.create("concat-bc-100", block_layers=(1, 1, 1), image_size=8).eval()
    with torch.inference_mode():
        dsn_kernels.accelerate(model)(torch.randn(2, 3, 8, 8))
    assert torch.cuda.is_initialized() is False
    try:
        import pydantic
    except ModuleNotFoundError as error:
        print(error)
    """
    subprocess_python(code, "No module named 'pydantic': taken away")


class FakeEvents:
    """A device on which a call takes as long as it says, and whose second-level cache has 40 bytes."""

    def __init__(self, monkeypatch):
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
            def cuda(self):
                return self

            def zero_(self):
                fake.run("flush", 100.0)

        def empty(size, dtype):
            assert (size, dtype) == (80, torch.uint8), "twice the cache"
            return Flush()

        cache = type("Properties", (), {"L2_cache_size": 40})
        for name, value in {"Event": Event, "CUDAGraph": Graph, "get_device_properties": lambda i: cache}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(module("gpu.clock").torch, "empty", empty)
        self.graph = Graph()

    def run(self, name, ms):
        self.clock += ms
        self.log.append(name)


class TwoShortRounds:
    turn_ms, rounds = 10.0, 2


def test_calls_that_are_no_replays_find_the_cache_flushed(monkeypatch):
    fake = FakeEvents(monkeypatch)
    calls = {"eager": lambda: fake.run("eager", 5.0), "graph": fake.graph.replay}
    found = module("gpu.clock").interleave(calls, TwoShortRounds, float("inf"))
    assert {name: latency.median for name, latency in found.items()} == {"eager": 5.0, "graph": 2.0}, "without flushes"
    timed = ["flush", "eager"]
    first = ["eager", *timed * 3, "replay", *["replay"] * 3]
    assert fake.log == first + 2 * ["eager", *timed * 2, "replay", *["replay"] * 5]


def test_a_measurement_ends_with_its_time(monkeypatch):
    fake = FakeEvents(monkeypatch)
    found = module("gpu.clock").interleave({"eager": lambda: fake.run("eager", 5.0)}, TwoShortRounds, 0.0)
    assert found["eager"].median == 5.0
    assert fake.log.count("eager") == 1 + 3 + 1 + 2, "one round of two"
