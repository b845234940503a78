"""The assembler's report: no kernel spills registers or has a stack frame."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "check_resources.py"


def check(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
def test_no_kernel_spills():
    """Of the newest architecture with kernels of its own; the script alone checks all of them."""
    report = check("--archs", "9.0a")
    assert report.returncode == 0, report.stdout + report.stderr
    assert "0 with a stack frame or spills" in report.stdout
    for kernel in ("bottleneck_layer_kernel<half", "plain_layer_kernel<half", "residual_layer_kernel<half"):
        assert kernel in report.stdout


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
def test_a_kernel_that_spills_is_told(tmp_path):
    source = tmp_path / "spills.cu"
    source.write_text(
        """
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
    )
    report = check("--archs", "9.0a", str(source))
    assert report.returncode == 1
    assert "spilling_kernel" in report.stdout and "1 with a stack frame or spills" in report.stdout
