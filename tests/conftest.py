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


def _quick_cases(cases):
    """Of one test: a case for each network of `QUICK`, or one that is for none in particular; in float32, if it can."""
    fitting, had = [], set()
    for case in cases:
        values = case.callspec.params.values() if hasattr(case, "callspec") else ()
        networks = frozenset(filter(None, map(zoo_name, values)))
        other_type = any(isinstance(value, torch.dtype) and value != torch.float32 for value in values)
        if networks <= set(QUICK) and not other_type and networks not in had:
            fitting.append(case)
            had.add(networks)
    return fitting or cases[:1]


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
        for item in _quick_cases(cases):
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
