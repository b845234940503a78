"""Where the CUDA kernels run in a test: on the host runner everywhere, on a GPU too where there is one."""

import os

import pytest
import torch

from csrc.simt.build import MissingError
from csrc.simt.host_runner import load_simt
from dsn_kernels import _C


def _why_no_gpu():
    if not _C.build_info()["cuda"]:
        return "this build has no CUDA kernels (no GPU or no nvcc where it was made)"
    return None if torch.cuda.is_available() else f"no GPU: {_C.cuda_error() or 'torch is built without CUDA'}"


def _switch(name):
    given = os.environ.get(name, "0")
    if given not in ("", "0", "1"):
        pytest.exit(f"{name} is {given!r}; expected 1 or 0", returncode=2)
    return given == "1"


@pytest.fixture(scope="session")
def runner_module():
    """The host runner; not where DSN_GPU_TESTS_ONLY is set, as benchmarks/gpu.sh does."""
    if _switch("DSN_GPU_TESTS_ONLY"):
        pytest.skip("DSN_GPU_TESTS_ONLY is set")
    try:
        return load_simt()
    except MissingError as error:
        pytest.skip(str(error))


class Place:
    """A backend and its device; ``seeded(n)`` shuffles the order of threads where they are played."""

    def __init__(self, backend, module=None):
        self.backend, self.module = backend, module
        self.device = "cuda" if backend == "cuda" else "cpu"

    def seeded(self, seed):
        if self.module is not None:
            self.module.configure(seed=seed)
            self.module.reset_counters()


@pytest.fixture(params=["simt", "cuda"])
def place(request):
    if request.param == "simt":
        return Place("simt", request.getfixturevalue("runner_module"))
    if reason := _why_no_gpu():
        pytest.skip(reason)
    return Place("cuda")


@pytest.fixture
def host(runner_module):
    return Place("simt", runner_module)


@pytest.fixture
def simt(runner_module):
    """The host runner with its counters at zero."""
    runner_module.configure(seed=0)
    runner_module.reset_counters()
    return runner_module


@pytest.fixture(scope="session")
def gpu():
    if reason := _why_no_gpu():
        pytest.skip(reason)
    return "cuda"
