"""The kernels compiled for GPUs that need not be here: the matrix instructions are there, nothing is spilled."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {
    "cuda:80": {"mma.sync"},
    "cuda:90": {"wgmma.mma_async", "mma.sync"},
    "hip:gfx942": {"v_mfma"},
}


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    script = Path(__file__).with_name("compile_ahead.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, script, request.param], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return request.param, json.loads(result.stdout)


def test_matrix_instructions(compiled):
    target, kernels = compiled
    products = {name: set(facts["products"]) for name, facts in kernels.items() if facts["convolution"]}
    assert len(products) >= 26
    assert {name: found for name, found in products.items() if not found & TARGETS[target]} == {}


def test_no_local_memory(compiled):
    _, kernels = compiled
    starved = kernels.pop("starved", None)  # of registers, on purpose
    if starved is not None:
        assert starved["local"] + starved["stack"] > 0
    used = {name: facts for name, facts in kernels.items() if facts["local"] or facts["stack"]}
    assert used == {}
