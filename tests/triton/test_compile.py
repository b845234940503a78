"""`torch.compile` sees through the operators to the kernels; for a device that is not here, up to the graph."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_are_in_the_graph():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    script = Path(__file__).with_name("trace.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    graphs = json.loads(result.stdout)
    # Two branches of two blocks with one and two layers: a gate for each layer and one look behind each block, a 1x1
    # and a 3x3 for each layer, a stem, a transition and a head; the guide is the fine transition's second convolution.
    assert graphs["lsn-concat-bc-100"] == {
        "gate_kernel": 2 * (3 + 2),
        "conv2d_kernel": 2 * (3 * 2 + 1 + 1) + 1,
        "path_features_kernel": 2,
        "head_kernel": 2,
    }
    # A stem, two units, the second one's shortcut and its gate.
    assert graphs["skipnet-38-rnn"] == {"conv2d_kernel": 1 + 2 * 2 + 1, "recurrent_gate_kernel": 1, "head_kernel": 1}
    # Gater and backbone, a stem and two units each; the chosen filters' lists and the samples that share them.
    assert graphs["gaternet-resnet-20"] == {
        "conv2d_kernel": 2 * (1 + 2 * 2),
        "head_kernel": 2,
        "partition_kernel": 1,
        "first_kernel": 1,
        "place_kernel": 1,
    }
