"""How captured graphs are kept and replayed, with torch's graphs, streams and events replaced by fakes and the launches
played on the host. tests/cuda/test_graphs.py does the same on a GPU."""

import contextlib

import pytest
import torch

import dsn_models
from dsn_kernels import Accelerated, Target
from dsn_kernels.runtime.cuda_graphs import CudaGraphs
from dsn_models.errors import UserError
from tests.networks import SMALL, make_images, randomise

BRANCHES = ("coarse", "fine")


class FakeCuda:
    """A device whose streams are numbers and whose captures record one call of a runner."""

    def __init__(self):
        self.stream, self.capturing, self.log = 0, False, []
        self.fail_in_capture = None

    def install(self, monkeypatch):
        fake = self

        class Stream:
            def __init__(self, device=None):
                fake.streams = getattr(fake, "streams", 0) + 1
                self.number = fake.streams

            def wait_stream(self, other):
                fake.log.append(("wait_stream", self.number, other.number))

        class Current:
            @property
            def number(self):
                return fake.stream

            def wait_stream(self, other):
                fake.log.append(("wait_stream", fake.stream, other.number))

        class Event:
            def record(self):
                fake.log.append(("record", fake.stream))

            def wait(self):
                fake.log.append(("wait", fake.stream))

        class Graph:
            def replay(self):
                fake.log.append(("replay", fake.stream))
                self.again()

        @contextlib.contextmanager
        def stream(chosen):
            before, fake.stream = fake.stream, chosen.number
            yield
            fake.stream = before

        @contextlib.contextmanager
        def graph(_, stream):
            fake.capturing = True
            yield
            fake.capturing = False
            if fake.fail_in_capture:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore lines")

        for name, value in {
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": Graph,
            "stream": stream,
            "graph": graph,
            "current_stream": lambda device=None: Current(),
            "device": lambda device: contextlib.nullcontext(),
            "is_current_stream_capturing": lambda: fake.capturing,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return self


class Runner:
    """The host runner, which a fake capture can run again into the same tensors."""

    def __init__(self, runner, fake):
        self.runner, self.fake, self.calls = runner, fake, []

    def __call__(self, *inputs):
        self.calls.append("capture" if self.fake.capturing else "call")
        if self.fake.capturing and self.fake.fail_in_capture:
            raise RuntimeError(self.fake.fail_in_capture)
        out = self.runner(*inputs)
        if self.fake.capturing:
            self.last = inputs, out
        return out

    def again(self):
        inputs, out = self.last
        for old, new in zip(out, self.runner(*inputs), strict=True):
            old.copy_(new)


@pytest.fixture
def fake(monkeypatch):
    return FakeCuda().install(monkeypatch)


@pytest.fixture
def pair(runner_module, fake, monkeypatch):
    """A model without a graph, and one whose graphs are fakes of 2 and 4 samples."""
    torch.manual_seed(0)
    model = randomise(dsn_models.create("concat-bc-100", **{**SMALL["concat-bc-100"], "block_layers": (1, 1, 1)}))
    plain = Accelerated(model, Target("simt", torch.float16))
    graphed = Accelerated(model, Target("simt", torch.float16))
    runner = Runner(graphed.runner, fake)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "again", lambda self: runner.again(), raising=False)
    graphed._cuda_graphs = CudaGraphs(runner, (2, 4))
    graphed.fake_runner = runner
    return plain, graphed


def test_padded_batches_give_what_single_launches_give(pair):
    plain, graphed = pair
    x = make_images(plain, 4)
    for batch in (3, 4, 3):
        assert torch.equal(torch.cat(graphed(x[:batch]), 1), torch.cat(plain(x[:batch]), 1))
        assert all(torch.equal(graphed.last_gates[n], plain.last_gates[n]) for n in BRANCHES)
        assert torch.equal(graphed.last_macs, plain.last_macs)
    assert graphed.fake_runner.calls == ["call", "capture"], "one warm call and one capture serve all three"


def test_forced_gates_have_a_graph_of_their_own(pair):
    plain, graphed = pair
    x = make_images(plain, 2)
    forced = {n: torch.randint(0, 2, (2, plain.layers[n])).byte() for n in BRANCHES}
    assert torch.equal(torch.cat(graphed(x, forced), 1), torch.cat(plain(x, forced), 1))
    graphed(x)
    assert graphed.fake_runner.calls == ["call", "capture"] * 2


def test_results_are_not_the_graphs_own_tensors(pair):
    plain, graphed = pair
    x = make_images(plain, 2)
    first = graphed(x)[0]
    kept = first.clone()
    graphed(-x)
    assert torch.equal(first, kept)


def test_calls_from_two_streams_take_turns(pair, fake):
    """A call begins behind the last one's end, wherever that was: both write the same inputs."""
    plain, graphed = pair
    x = make_images(plain, 2)
    graphed(x)
    fake.log.clear()
    for fake.stream in (7, 8):
        graphed(x)
    assert fake.log == [(what, stream) for stream in (7, 8) for what in ("wait", "replay", "record")]


def test_images_with_a_gradient_leave_no_history(pair):
    plain, graphed = pair
    x = make_images(plain, 2).requires_grad_()
    with torch.no_grad():
        graphed(x)
    (captured,) = graphed._cuda_graphs._captured.values()
    assert not captured.image.requires_grad


def test_a_failed_capture_says_why(pair, fake):
    plain, graphed = pair
    fake.fail_in_capture = "run_plan: out of memory on cuda:0 for the 7 MiB that a batch of 2 works in\nsecond line"
    with pytest.raises(
        UserError, match="a CUDA graph for 2 images cannot be captured: run_plan: out of memory"
    ) as error:
        graphed(make_images(plain, 2))
    assert "\n" not in str(error.value)
    fake.fail_in_capture = None
    graphed(make_images(plain, 2))


def test_a_capture_within_a_capture_is_refused(pair, fake):
    plain, graphed = pair
    fake.capturing = True
    with pytest.raises(UserError, match="cannot be captured in another: use cuda_graph=False"):
        graphed(make_images(plain, 2))


def test_a_batch_beyond_the_captured_sizes(pair):
    plain, graphed = pair
    with pytest.raises(UserError, match="a batch of 5 images is beyond the captured sizes, which end at 4: split it"):
        graphed(make_images(plain, 5))


def test_an_empty_batch_is_not_captured(pair):
    plain, graphed = pair
    assert graphed(make_images(plain, 2)[:0])[0].shape == (0, 20)
    assert not graphed._cuda_graphs._captured
