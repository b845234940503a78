"""What all tests share, and which of them `make quick` runs."""

import collections
import os
import subprocess
import sys
import textwrap
from pathlib import Path

# Workers share the cores: a thread each, for tests that choose no other number. Settled when torch is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from tests.networks import QUICK, zoo_name

# Triton's kernels run in its interpreter where there is no GPU; that is settled when Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

QUICK_CASES = 3  # of each test


def _fits(item):
    """Whether a case is in float32, and of a network that `make quick` knows, as far as it has these."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    dtypes = [value for value in values if isinstance(value, torch.dtype)]
    networks = [name for name in map(zoo_name, values) if name]
    return all(dtype == torch.float32 for dtype in dtypes) and set(networks) <= set(QUICK)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items):
    tests = collections.defaultdict(list)
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        if "gpu" in getattr(item, "fixturenames", ()) or values.get("place") == "cuda":
            item.add_marker("gpu")
        elif not any(item.get_closest_marker(name) for name in ("slow", "long")):
            tests[item.path, item.originalname].append(item)
    for cases in tests.values():
        for item in ([case for case in cases if _fits(case)] or cases)[:QUICK_CASES]:
            item.add_marker("quick")


@pytest.fixture
def subprocess_python():
    """Runs code in a fresh interpreter from the repository's root; its last printed line must be ``expect``."""

    def run(code, expect, **environment):
        root = Path(__file__).parents[1]
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().splitlines()[-1] == expect

    return run
