"""What is measured has a name on a profiler's timeline: NVTX ranges, kept by a fake where there is no GPU."""

from contextlib import contextmanager

import pytest
import torch

import dsn_kernels
from dsn_kernels.measure import InterleavedTimer, timeline
from dsn_kernels.measure.serving import Load, under_load
from tests.networks import make_images, make_small


@pytest.fixture
def log(monkeypatch):
    """The ranges that were opened and closed."""
    seen = []

    @contextmanager
    def fake(name):
        seen.append(f"begin {name}")
        yield
        seen.append(f"end {name}")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nvtx, "range", fake)
    return seen


def test_counted_calls_of_a_turn(log):
    InterleavedTimer({"ours": lambda: log.append("call")}).run(0, min_rounds=1)
    assert log == ["call", "begin ours", "call", "end ours"], "the call that warms up is outside"


def test_what_a_timeline_times(log):
    fast = dsn_kernels.accelerate(make_small("concat-bc-100"), backend="cpu")
    timeline(fast, make_images(fast, 2), runs=2)
    assert [line for line in log if "run_plan" in line] == ["begin run_plan", "end run_plan"] * 2


def test_networks_under_load(log):
    model = make_small("skipnet-38-rnn")
    under_load(model, "skipnet", make_images(model, 2), Load("qps=200,slo=20ms"), max_batch=2, seconds=0.01)
    begun = [line for line in log if line.startswith("begin")]
    assert begun[:4] == [
        "begin dense, 40 requests a second",
        "begin open, 40 requests a second",
        "begin skipping, 40 requests a second",
        "begin dense, 80 requests a second",
    ]


def test_nothing_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cuda.nvtx, "range")
    calls = []
    InterleavedTimer({"ours": lambda: calls.append(1)}).run(0, min_rounds=1)
    assert len(calls) == 2
