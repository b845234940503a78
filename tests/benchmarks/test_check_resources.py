"""The assembler's report: what spills is found, the committed report has no flaw and knows every kernel."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "check_resources.py"
REPORT = ROOT / "benchmarks" / "results" / "gpu-kernel-resources.json"
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")

SPILLING = """
__global__ void __launch_bounds__(1024, 2) spilling_kernel(const float* in, float* out) {
  float x[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = in[i * 1024 + threadIdx.x];
#pragma unroll
  for (int k = 0; k < 8; ++k)
#pragma unroll
    for (int i = 0; i < 64; ++i) x[i] = fmaf(x[i], x[(i * 7 + k) % 64], x[(i + 31) % 64]);
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = x[i];
}
"""


@pytest.fixture(scope="module")
def resources():
    spec = importlib.util.spec_from_file_location("check_resources", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def check(source):
    return subprocess.run([sys.executable, SCRIPT, "--archs", "9.0a", source], capture_output=True, text=True)


@pytest.mark.long
@needs_nvcc
def test_a_kernel_that_spills_is_told(tmp_path):
    source = tmp_path / "spills.cu"
    source.write_text(SPILLING)
    report = check(source)
    assert report.returncode == 1
    assert re.search(r"spilling_kernel +sm_90a +32 registers .* SPILLED \d+ B", report.stdout)
    assert "1 kernels, 1 with a stack frame or spills" in report.stdout


@pytest.mark.long
@needs_nvcc
def test_a_kernel_that_does_not(tmp_path):
    report = check(ROOT / "csrc" / "cuda" / "device_info.cu")
    assert report.returncode == 0, report.stderr
    assert "1 kernels, 0 with a stack frame or spills" in report.stdout


@needs_nvcc
@pytest.mark.slow
def test_the_build_can_be_told_to_fail_on_spills(tmp_path):
    """The assembler's options of CHECK_SPILLS, which `make test` sets."""
    source = tmp_path / "spills.cu"
    source.write_text(SPILLING)
    options = re.search(r'"(-Xptxas=--warn[^"]*)"', (ROOT / "setup.py").read_text())[1]
    command = ["nvcc", "-arch=sm_90a", options, "-c", str(source), "-o", str(tmp_path / "out.o")]
    assert subprocess.run(command, capture_output=True).returncode != 0
    clean = ["-I", str(ROOT / "csrc"), str(ROOT / "csrc" / "cuda" / "device_info.cu")]
    assert subprocess.run([*command[:3], "-std=c++20", "-c", *clean, *command[-2:]]).returncode == 0


@needs_nvcc
@pytest.mark.long
def test_the_kernels_compile(tmp_path):
    """In one type and without optimisation: the host runner compiles all but what only nvcc understands.

    In every type and optimised, and their registers: test_the_build_with_cuda in tests/test_build.py.
    """
    source, out = ROOT / "csrc" / "cuda" / "network_half.cu", tmp_path / "out.o"
    options = ["-arch=sm_90a", "-std=c++20", "-I", str(ROOT / "csrc"), "-Xcicc", "-O0", "-Xptxas", "-O0"]
    done = subprocess.run(["nvcc", *options, "-c", str(source), "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_occupancy(resources):
    kernel = resources.Kernel("k", "90a", 128, 0, 0)
    assert (kernel.blocks, kernel.occupancy) == (2, 0.25)  # 2 x 256 x 128 are all registers
    assert resources.Kernel("k", "90a", 32, 0, 0, 256, 100 * 1024).blocks == 2  # 228 KiB of shared memory
    assert resources.Kernel("k", "75", 32, 0, 0).blocks == 4  # 1024 threads


def test_threads_are_the_launchs_or_the_kernels_own(resources):
    report = "\n".join(
        f"Compiling entry function '{name}' for 'sm_90a'\n0 bytes stack frame, 0 bytes spill stores\nUsed 40 registers"
        for name in ("_ZN3dsn4cuda16unit_gate_kernelILi128EEvNS0_14UnitGateParamsE",
                     "_ZN3dsn4cuda11stem_kernelI6__halfEEvNS0_10StemParamsE",
                     "_ZN3dsn4cuda11head_kernelI6__halfEEvNS0_10HeadParamsE")
    )  # fmt: skip
    kernels = resources.parse(report, {"90a": {"stem_kernel<half>": (128, 1024)}})
    assert [(k.threads, k.shared) for k in kernels] == [(128, None), (128, 1024), (256, None)]
    assert kernels[0].blocks == 2048 // 128 * 3 // 4  # 12 x 128 x 40 are nearly all registers


def test_names(resources):
    mangled = "_ZN3dsn4cuda23bottleneck_layer_kernelI6__halfLi6ELi2ELb1EEEvNS0_16DenseLayerParamsE"
    assert resources.readable(mangled) == "bottleneck_layer_kernel<half, 6, 2, 1>"
    mangled = "_ZN3dsn4cuda13conv2d_kernelIfLi4ELb1EEEvNS0_12Conv2dParamsE"
    assert resources.readable(mangled) == "conv2d_kernel<float, 4, 1>"


def test_the_committed_report_is_clean_and_whole(resources):
    """Every kernel of the sources on every architecture."""
    kernels = json.loads(REPORT.read_text())["kernels"]
    assert not [k["name"] for k in kernels if k["stack"] or k["spilled"]]
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cuh"))
    defined = set(re.findall(r"^(?!//).*\b(\w+_kernel)\(const __grid_constant__", sources, re.MULTILINE))
    assert len(defined) > 10
    for arch in resources.ARCHS.replace(".", "").split(";"):
        assert defined <= {k["name"].split("<")[0] for k in kernels if k["arch"] == arch}, arch


def test_a_report_grows_by_architecture(resources, tmp_path, monkeypatch):
    """What an earlier run wrote of other architectures stays, what it wrote of this one does not."""
    report = tmp_path / "report.json"
    monkeypatch.setattr(
        resources.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "release 13.0")
    )
    resources.write(
        report, "80", [resources.Kernel("b_kernel", "80", 40, 0, 0), resources.Kernel("a_kernel", "80", 32, 0, 0)]
    )
    resources.write(report, "75", [resources.Kernel("b_kernel", "75", 41, 0, 0)])
    resources.write(report, "80", [resources.Kernel("b_kernel", "80", 42, 0, 0)])
    rows = json.loads(report.read_text())["kernels"]
    assert [(k["name"], k["arch"], k["registers"]) for k in rows] == [("b_kernel", "75", 41), ("b_kernel", "80", 42)]
