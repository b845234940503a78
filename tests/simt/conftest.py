"""Builds the host runner with the kernels of tests/simt/kernels and hands it to the tests."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def simt_build():
    """csrc/simt/build.py, as a module."""
    return _load("simt_build", ROOT / "csrc" / "simt" / "build.py")


@pytest.fixture(scope="session")
def simt_module(simt_build):
    sources = sorted(Path(__file__).parent.glob("kernels/*.cpp"))
    sanitizer = os.environ.get("DSN_SIMT_SANITIZER", "none")
    if sanitizer not in simt_build.KERNEL_FLAGS:
        pytest.exit(f"DSN_SIMT_SANITIZER is {sanitizer!r}; expected one of {', '.join(simt_build.KERNEL_FLAGS)}", 2)
    try:
        # A name of its own: pybind11 gives out one module per name, and tests/cuda loads the product's.
        return _load("kernels_of_tests.dsn_simt", simt_build.build(sanitizer, sources, "test"))
    except simt_build.MissingError as error:
        pytest.skip(f"the host runner cannot be built: {error}")


@pytest.fixture(params=range(4), ids=lambda seed: f"seed{seed}")
def seed(request):
    """Seeds of the order in which blocks, warps and lanes run."""
    return request.param


@pytest.fixture
def simt(simt_module, seed):
    """The host runner with counters at zero, under each seed."""
    simt_module.configure(seed=seed)
    simt_module.reset_counters()
    return simt_module


@pytest.fixture
def poisoned():
    """poisoned(shape, dtype): an array of 0xff bytes, NaN in every float type; outputs are so before a launch."""

    def make(shape, dtype):
        array = np.empty(shape, dtype)
        array.view(np.uint8).reshape(-1)[:] = 0xFF
        return array

    return make
