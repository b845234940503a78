"""An unknown value of an environment variable is refused in one line, not taken for another."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsn_kernels import _C, choice, costs
from dsn_models import distributed
from dsn_models.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup_module():
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    return load(ROOT / "setup.py")


@pytest.mark.parametrize("name", ["BUILD_NO_CUDA", "FORCE_CUDA", "DEBUG", "CHECK_SPILLS"])
def test_switches_of_the_build(setup_module, monkeypatch, name):
    for given, expected in (("1", True), ("TRUE", True), ("on", True), ("", False), ("0", False), ("No", False)):
        monkeypatch.setenv(name, given)
        assert setup_module.switch(name) is expected
    monkeypatch.setenv(name, "maybe")
    with pytest.raises(Exception, match=f"^{name} is 'maybe'; expected 1 or 0$"):
        setup_module.check_environment()


@pytest.mark.parametrize("jobs", ["many", "0", "-1", "1.5", ""])
def test_jobs_of_the_build(setup_module, monkeypatch, jobs):
    monkeypatch.setenv("MAX_JOBS", jobs)
    with pytest.raises(Exception, match=f"^MAX_JOBS is '{jobs}'; expected a number of compilers, 1 or more, or none$"):
        setup_module.check_environment()


@pytest.mark.long
def test_the_instruction_set(subprocess_python):
    """The library imports; what would choose kernels says why it cannot."""
    code = """
        import torch, dsn_kernels, dsn_models
        model = dsn_models.create("resnet-20", stage_units=(1, 1, 1)).eval()
        for call in (dsn_kernels._C.build_info, lambda: dsn_kernels.accelerate(model)):
            try:
                call()
            except dsn_models.UserError as error:
                print(error, end=" | ")
        print("alive")
    """
    refusal = "DSN_ISA is 'sse9'; expected one of generic, avx2, avx512, avx512_bf16, or none"
    subprocess_python(code, f"{refusal} | {refusal} | alive", DSN_ISA="sse9")


@pytest.mark.long
def test_no_instruction_set_is_the_best(subprocess_python):
    code = "import dsn_kernels; print(dsn_kernels._C.build_info()['isa'])"
    subprocess_python(code, _C.build_info()["isa"], DSN_ISA="")


def test_tritons_interpreter(monkeypatch):
    from dsn_kernels import triton

    monkeypatch.setattr(triton, "version", lambda: "3.6.0")
    for given in ("maybe", "2", "-1"):
        monkeypatch.setenv("TRITON_INTERPRET", given)
        with pytest.raises(UserError, match=f"^TRITON_INTERPRET is '{given}'; expected 1 or 0$"):
            triton.resolve_device(None, torch.float32)


@pytest.mark.parametrize("given", ["two", "-1", ""])
def test_processes_that_train_together(monkeypatch, given):
    monkeypatch.setenv("WORLD_SIZE", given)
    with pytest.raises(UserError, match=f"^WORLD_SIZE is '{given}'; expected the number that torchrun sets"):
        with distributed.process_group(torch.device("cpu")):
            pass


def test_processes_that_cannot_meet(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"^2 processes cannot meet \(.*\); start them with torchrun$"):
        with distributed.process_group(torch.device("cpu")):
            pass


@pytest.mark.parametrize(
    "world, rank, first", [(None, "3", True), ("1", "3", True), ("2", "0", True), ("2", "1", False)]
)
def test_a_rank_counts_only_among_several(monkeypatch, world, rank, first):
    """A cluster's scheduler may set RANK for a process that trains alone; it prints and writes all the same."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("RANK", rank)
    assert distributed.is_first() is first


def test_switches_of_the_tests(monkeypatch):
    name = "DSN_GPU_TESTS_ONLY"
    switch = load(ROOT / "tests" / "cuda" / "conftest.py")._switch
    for given, expected in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv(name, given)
        assert switch(name) is expected
    monkeypatch.setenv(name, "yes")
    with pytest.raises(pytest.exit.Exception, match=f"^{name} is 'yes'; expected 1 or 0$"):
        switch(name)


def test_seconds_of_the_gpu_script(tmp_path):
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable, "GPU_SECONDS": "soon"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "GPU_SECONDS is 'soon'; expected whole seconds, such as 525\n"


def test_the_users_table_of_backends(monkeypatch, tmp_path):
    monkeypatch.setenv("DSN_BACKENDS", str(tmp_path))  # a folder
    with pytest.raises(UserError, match="is not a table of backends"):
        choice.times()
    with pytest.raises(UserError, match="is not a table of backends"):
        choice.add_times("a GPU", "float32", {})


def test_no_home_is_no_obstacle(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert costs.cache_folder().name.startswith("dsn-kernels")
