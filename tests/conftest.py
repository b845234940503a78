import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


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
