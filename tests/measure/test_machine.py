"""What is recorded of a machine, staying on some of its cores, and the memory that a network takes."""

import os
import subprocess

import pytest
import torch

import dsn_models
from dsn_kernels.measure import machine
from dsn_kernels.measure.memory import OURS, peak_memory
from dsn_models import UserError


@pytest.fixture
def cores():
    """Gives affinity and threads back."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    yield sorted(before)
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), before)
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_pinned_threads_stay_on_their_cores(cores):
    machine.pin(str(cores[0]))
    assert machine.affinity() == [cores[0]] and torch.get_num_threads() == 1
    assert all(os.sched_getaffinity(int(task)) == {cores[0]} for task in os.listdir("/proc/self/task"))
    assert machine.describe()["cores"] == 1


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "0,,1", "9999", "1-0"])
def test_cores_that_are_none(text, cores):
    with pytest.raises(UserError, match=f"pin is '{text}'; expected"):
        machine.pin(text)
    assert machine.affinity() == cores


def test_ranges_of_cores():
    assert machine._ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


@pytest.mark.long
def test_peak_memory_grows_with_the_batch():
    model = dsn_models.create("resnet-20", stage_units=(1, 1, 1)).eval()
    small, large = (peak_memory(name, model, torch.zeros(n, 3, 32, 32)) for name, n in ((OURS, 1), ("eager", 256)))
    # 256 maps of 16 x 32 x 32 floats are 16 MiB; ours keeps one sample's.
    assert 0 <= small["mib"] < 64 and large["mib"] > 32


@pytest.mark.long
def test_memory_of_what_cannot_be_built():
    broken = torch.nn.Conv2d(4, 4, 1)
    assert "not_available" in peak_memory("eager", broken, torch.zeros(1, 3, 8, 8))


def test_a_commit_is_dirty_by_its_sources(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    assert machine.commit_of(tmp_path) is None
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    source, result = tmp_path / "code.py", results / "run.json"
    for file in (source, result):
        file.write_text("1")
    git("init", "--quiet")
    assert machine.commit_of(tmp_path) is None
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    commit = machine.commit_of(tmp_path)
    assert len(commit) == 12 and int(commit, 16) >= 0
    result.write_text("2")
    assert machine.commit_of(tmp_path) == commit
    source.write_text("2")
    assert machine.commit_of(tmp_path) == f"{commit}-dirty"
