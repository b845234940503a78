"""The same kernels under the address and undefined-behaviour sanitizers.

A sanitized module needs libasan loaded ahead of Python, so each test is a process of its own. Plain accesses are not
counted and races not looked for there; the tests beside this one do.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow  # it compiles the runner anew


@pytest.fixture(scope="module")
def run_sanitized(simt_module, simt_build):
    sources = [path for path in sorted(HERE.glob("kernels/*.cpp")) if not path.stem.startswith("plan_")]
    module = simt_build.build("address", sources, "test")
    libasan = subprocess.run(
        [simt_build.find_compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()

    def run(code):
        prelude = f"""
            import importlib.util, numpy as np
            spec = importlib.util.spec_from_file_location("dsn_simt", {str(module)!r})
            simt = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(simt)
            assert simt.sanitizer == "address"
            values, out = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
        """
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
            env={**os.environ, "LD_PRELOAD": libasan, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    return run


def test_kernels_run_clean(run_sanitized):
    done = run_sanitized("""
        simt.scale(simt.output(out), simt.input(values), 2.0)
        assert (out == 2 * values[::-1]).all()
        words, copied = np.arange(1280, dtype=np.uint32), np.zeros(1280, np.uint32)
        for seed in range(4):
            simt.configure(seed=seed)
            simt.pipeline_16(simt.output(copied), simt.input(words))
            assert (copied == words.reshape(-1, 128)[:, ::-1].reshape(-1)).all()
            simt.cluster(simt.output(copied[:256]), simt.input(words[:256]))
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "kernel, message",
    [
        ("off_by_one", r"AddressSanitizer: heap-buffer-overflow"),
        ("shared_off_by_one", r"AddressSanitizer: use-after-poison"),
        ("local_overflow", r"index 64 out of bounds for type 'float [4]'"),
    ],
)
def test_a_fault_ends_the_process_at_its_line(run_sanitized, kernel, message):
    done = run_sanitized(f"simt.{kernel}(simt.output(out), simt.input(values))")
    assert done.returncode != 0
    assert message in done.stderr
    assert "broken.cpp:" in done.stderr
