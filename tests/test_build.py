"""The build: what it says about itself, what it links, and how it refuses."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dsn_kernels

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = dsn_kernels._C.__file__
SWITCHES = ("BUILD_NO_CUDA", "FORCE_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CXX")


def python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    ).stdout.strip()


def binutil(name: str, *options: str) -> str:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed (binutils)")
    return subprocess.run([name, *options, LIBRARY], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def setup_module():
    for needed in ("setuptools", "pybind11"):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("dsn_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clean(monkeypatch):
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_build_info():
    info = dsn_kernels._C.build_info()
    assert set(info) == {"compiler", "torch_target", "torch_build", "cuda", "cuda_archs", "isa", "bfloat16", "debug"}
    assert info["isa"] in ("generic", "avx2", "avx512")
    assert (info["bfloat16"] != "") == (info["isa"] == "avx512")
    assert info["torch_target"] == "2.11"
    assert bool(info["cuda_archs"]) == info["cuda"]


@pytest.mark.long
@pytest.mark.parametrize("isa", ["generic", "avx2"])
def test_the_instruction_set_is_chosen_at_run_time(isa):
    best = dsn_kernels._C.build_info()["isa"]
    found = python("import dsn_kernels; print(dsn_kernels._C.build_info()['isa'])", DSN_ISA=isa)
    assert found == ("generic" if best == "generic" else isa)


def test_links_nothing_of_cuda():
    needed = re.findall(r"NEEDED.*\[(.*)\]", binutil("readelf", "-d"))
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cud" in name or "nv" in name or "torch_python" in name]


def test_uses_the_stable_abi_only():
    undefined = re.findall(r" U (.*)", binutil("nm", "-D", "-C", "--undefined-only"))
    assert any(name.startswith("aoti_torch_") for name in undefined)
    assert not [name for name in undefined if re.search(r"\b(at|c10|torch)::", name)]


def test_exports_nothing_but_the_module():
    defined = set(re.findall(r" [TDB] (.*)", binutil("nm", "-D", "-C", "--defined-only")))
    assert defined - {"__bss_start", "_edata", "_end"} == {"PyInit__C"}  # the others are the linker's own


@pytest.mark.long
def test_no_compiler_is_one_clear_line(tmp_path, clean):
    clean.setenv("CXX", "/nonexistent")
    clean.setenv("PATH", str(tmp_path))
    command = [sys.executable, "setup.py", "build_ext", f"--build-temp={tmp_path}", f"--build-lib={tmp_path}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1] == (
        "error: no C++ compiler: /nonexistent not found; install one (Debian: apt-get install g++) or set CXX"
    )


def test_force_cuda_without_nvcc(setup_module, clean):
    clean.setenv("CUDA_HOME", "/nonexistent")
    assert setup_module.find_nvcc() is None
    clean.setenv("FORCE_CUDA", "1")
    with pytest.raises(Exception, match="FORCE_CUDA is set, but no nvcc in /nonexistent/bin: install the CUDA toolkit"):
        setup_module.find_nvcc()


def test_build_no_cuda(setup_module, clean):
    clean.setenv("BUILD_NO_CUDA", "1")
    assert setup_module.find_nvcc() is None
    clean.setenv("FORCE_CUDA", "1")
    with pytest.raises(Exception, match="FORCE_CUDA and BUILD_NO_CUDA contradict each other"):
        setup_module.find_nvcc()
    clean.setenv("BUILD_NO_CUDA", "0")
    clean.setenv("CUDA_HOME", "/nonexistent")
    with pytest.raises(Exception, match="no nvcc"):
        setup_module.find_nvcc()


def test_architectures(setup_module):
    assert setup_module.parse_archs("8.0;9.0a 12.0+PTX") == [("8.0", False), ("9.0a", False), ("12.0", True)]
    for wrong in ("Hopper", "90", "8.0,9.0", " "):
        with pytest.raises(Exception, match="expected all, or entries such as 9.0, 9.0a"):
            setup_module.parse_archs(wrong)


@pytest.mark.parametrize(
    ("told", "environment", "expected"),
    [
        ("", {}, []),
        ("NVIDIA-SMI has failed\n", {"TORCH_CUDA_ARCH_LIST": ""}, []),
        ("9.0\n9.0\n8.6\n", {}, [("8.6", False), ("9.0a", False)]),
        ("9.0\n", {"TORCH_CUDA_ARCH_LIST": "8.0+PTX"}, [("8.0", True)]),
        ("9.0\n", {"TORCH_CUDA_ARCH_LIST": "all"}, [("8.0", False), ("9.0a", False), ("12.0", True)]),
        ("", {"FORCE_CUDA": "1"}, [("8.0", False), ("9.0a", False), ("12.0", True)]),
        ("", {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}, [("9.0", False)]),
    ],
)
def test_cuda_is_compiled_for_the_gpu_at_hand(setup_module, clean, tmp_path, told, environment, expected):
    """And without one only where it is asked for; of "all", what nvcc knows."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{told}'\n")
    tool.chmod(0o755)
    clean.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for name, value in environment.items():
        clean.setenv(name, value)
    assert setup_module.choose_archs(["compute_80", "compute_90", "compute_120"]) == expected


def test_no_driver_is_no_gpu(setup_module, clean, tmp_path):
    clean.setenv("PATH", str(tmp_path))
    assert setup_module.gpu_archs() == "" and setup_module.choose_archs(["compute_90"]) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
def test_the_build_with_cuda(tmp_path):
    """All kernels, optimised, without a spill; the module imports without a driver and links the runtime statically."""
    folders = [f"--build-temp={tmp_path / 'temp'}", f"--build-lib={tmp_path}"]
    environment = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0a", "CHECK_SPILLS": "1"}
    command = [sys.executable, "setup.py", "build_ext", *folders]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (library,) = (tmp_path / "dsn_kernels").glob("_C*.so")
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in needed and "libcud" not in needed
    code = f"""
import importlib.util, torch
spec = importlib.util.spec_from_file_location("dsn_kernels._C", {str(library)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.build_info()["cuda_archs"])
"""
    assert python(code) == "9.0a"


def test_every_dependency_is_pinned():
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements" / "run.txt").read_text(), re.M))
    names = {re.match(r"[\w-]+", dependency)[0] for dependency in project["dependencies"]}
    assert names <= pinned


def test_the_changelog_tells_of_this_version():
    (version,) = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
