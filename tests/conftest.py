import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

# Triton's kernels run in its interpreter where there is no GPU; that is settled when Triton is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


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
