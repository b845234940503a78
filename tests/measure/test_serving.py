"""Serving under load, on a clock that the test moves."""

import numpy as np
import pytest
import torch

import dsn_models
from dsn_kernels.measure.serving import Load, poisson_arrivals, serve, under_load
from dsn_kernels.report.plots import load_figure, picture
from dsn_models import UserError


class Worker:
    """Takes one second a batch."""

    def __init__(self):
        self.now, self.batches = 5.0, []

    def __call__(self, requests):
        self.batches.append(list(requests))
        self.now += 1.0

    def sleep(self, seconds):
        self.now += seconds


def test_what_waits_is_the_next_batch():
    worker = Worker()
    served = serve(worker, [1.0, 1.5, 1.75, 1.9, 9.0], 2, clock=lambda: worker.now, sleep=worker.sleep)
    assert worker.batches == [[0], [1, 2], [3], [4]] and served.batches == [1, 2, 1, 1]
    assert served.latencies == pytest.approx([1.0, 1.5, 1.25, 2.1, 1.0])


def test_arrivals_have_the_rate_and_follow_the_seed():
    arrivals = poisson_arrivals(100.0, 50.0, seed=0)
    assert len(arrivals) == 5000 and arrivals[-1] == pytest.approx(50, rel=0.05) and (np.diff(arrivals) > 0).all()
    assert np.std(np.diff(arrivals)) == pytest.approx(0.01, rel=0.05)  # of an exponential, mean and deviation agree
    assert np.array_equal(arrivals, poisson_arrivals(100.0, 50.0, seed=0))
    assert len(poisson_arrivals(0.1, 1.0, seed=0)) == 1


@pytest.mark.long
def test_document_and_figure():
    torch.manual_seed(0)
    model = dsn_models.create("dsn-navon", image_size=16, block_layers=(1, 1)).eval()
    gates = {name: torch.zeros(4, 2, dtype=torch.uint8) for name in ("coarse", "fine")}
    images = torch.rand(4, 1, 16, 16)
    document = under_load(model, "tiny", images, Load("qps=100,slo=60000ms"), max_batch=4, seconds=0.05, gates=gates)
    assert [row["network"] for row in document["rows"]] == ["dense", "open", "skipping"] * 5
    assert [row["requests"] for row in document["rows"]][::3] == [1, 2, 3, 4, 5]
    assert document["largest_rate"] == dict.fromkeys(("dense", "open", "skipping"), 100.0)
    for row in document["rows"]:
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] and row["in_time"] == 1 and 1 <= row["mean_batch"] <= 4
    assert picture(lambda colours: load_figure(document, colours), "svg").startswith(b"<?xml")


@pytest.mark.parametrize("text", ["", "qps=5", "qps=0,slo=5", "qps=5,slo=0ms", "slo=5,qps=5"])
def test_refuses(text):
    with pytest.raises(UserError, match="expected requests a second and milliseconds: qps=200,slo=20ms"):
        Load(text)
