"""Which layer ran for which sample: spans against the gates and against what the kernels counted."""

import json
import re
import sys

import pytest
import torch

import dsn_kernels
from dsn_kernels import ops
from dsn_kernels.lower import steps
from dsn_kernels.measure import timeline
from dsn_kernels.measure.flops import flops
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.timeline import WHOLE_BATCH
from dsn_kernels.report.plots import picture
from dsn_kernels.report.timeline_views import document, kinds, rows, timeline_figure, trace
from dsn_models import UserError
from tests.networks import make_images, make_small, own_network

FAMILIES = {
    "concat-bc-100": {},
    "add-166": {},
    "dsn-121": {"image_size": 32},
    "skipnet-38-rnn": {"stage_units": (2, 1, 1)},
    "skipnet-110-ff": {},
    "gaternet-resnet-20": {},
    "gunn-15": {},
    "resnet-20": {"stage_units": (1, 1, 1), "stage_widths": (8, 8, 16), "stem_width": 8, "image_size": 8},
}


def build(name):
    if name == "resnet-20":
        import dsn_models

        return dsn_kernels.accelerate(dsn_models.create(name, **FAMILIES[name]).eval())
    return dsn_kernels.accelerate(make_small(name, **FAMILIES[name]))


def half(fast, batch):
    if not fast.layers:
        return None
    return GateSetting("random:0.5").draw(fast.config, fast.layers, batch, torch.Generator().manual_seed(0))


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_and_macs_are_those_of_the_meter(name, threads):
    fast = build(name)
    batch = 5
    gates = half(fast, batch)
    found = timeline(fast, make_images(fast, batch), gates, runs=1)
    count = flops(fast)
    by_torch = {"rest"} if any(step.startswith("torch.") for step in found.steps) else set()
    columns = {step: i for i, step in enumerate(found.steps)}
    assert len(columns) == len(found.steps)
    rest = torch.zeros(batch, dtype=torch.int64)
    for layer in count.layers:
        if layer.name in by_torch:
            rest = layer.executed
        elif ".gate." not in f".{layer.name}" or layer.name in columns:  # a dense block's gates are the block's
            assert torch.equal(found.ran[:, columns[layer.name]], layer.ran.expand(batch)), layer.name
    assert torch.equal(found.macs.sum(1), count.executed - rest)
    for i, gate in enumerate(found.gates):
        if gate >= 0:
            shut = found.ran[:, i] == 0
            assert (found.macs[shut, i] == 0).all() and (found.ms[~shut, i] > 0).all()
    assert found.threads == threads and {span.thread for span in found.spans} <= set(range(threads))


def test_a_gate_is_named_by_what_it_decides_on():
    fast = build("skipnet-38-rnn")
    steps = timeline(fast, make_images(fast, 1), runs=1)
    governed = {gate: step.partition(".conv2d")[0] for step, gate in zip(steps.steps, steps.gates, strict=True)}
    gates = [step for step in steps.steps if step.endswith(".gate.0")]
    assert gates == [f"{governed[i]}.gate.0" for i in range(len(gates))] and len(gates) == fast.layers["units"]


def test_spans_lie_in_the_call_and_threads_do_one_thing_at_a_time(threads):
    fast = build("skipnet-38-rnn")
    found = timeline(fast, make_images(fast, 7), half(fast, 7), runs=3)
    assert {span.sample for span in found.spans} - {WHOLE_BATCH} == set(range(7))
    for thread in range(threads):
        own = [span for span in found.spans if span.thread == thread]
        assert all(0 <= span.start <= span.end <= found.total_ms * 1e6 for span in own)
        assert all(before.end <= after.start for before, after in zip(own, own[1:], strict=False))


def test_milliseconds_are_the_spans_of_a_sample():
    fast = build("concat-bc-100")
    found = timeline(fast, make_images(fast, 2), half(fast, 2), runs=1)
    whole = sum(span.end - span.start for span in found.spans if span.sample == WHOLE_BATCH)
    for sample in range(2):
        outer = [s for s in found.spans if s.sample == sample and ".layer." not in found.steps[s.step]]
        own = sum(span.end - span.start for span in outer)
        assert found.ms[sample].sum().item() == pytest.approx((own + whole / 2) / 1e6)


def test_milliseconds_are_medians_over_the_calls(monkeypatch):
    fast = build("concat-bc-100")
    images = make_images(fast, 2)
    every = [timeline(fast, images, runs=1) for _ in range(3)]
    calls = iter(every)
    module = sys.modules["dsn_kernels.measure.timeline"]  # the package's name is that of the function
    monkeypatch.setattr(module, "_once", lambda *arguments: next(calls))
    found = timeline(fast, images, runs=3)
    assert torch.equal(found.ms, torch.stack([one.ms for one in every]).median(0).values)
    lengths = sorted(one.total_ms for one in every)
    assert found.total_ms == lengths[1] and found.spans == next(o for o in every if o.total_ms == lengths[1]).spans


def test_what_torch_runs_is_of_the_whole_batch():
    fast = build("gaternet-resnet-20")
    found = timeline(fast, make_images(fast, 4), runs=1)
    assert any(step.startswith("torch.") for step in found.steps)
    whole = [span for span in found.spans if span.sample == WHOLE_BATCH]
    assert whole and all(found.steps[span.step].startswith("torch.") for span in whole)
    assert any(step.startswith("gater.") for step in found.steps)


def test_decisions_and_outputs_are_those_of_a_plain_call():
    fast = build("concat-bc-100")
    images = make_images(fast, 3)
    own = fast.runner.own
    given = (images, fast.runner.weights, fast.thresholds, None, own.words)
    *timed, spans = ops.run_plan(*given, **own.sizes, timed=True)
    *plain, none = ops.run_plan(*given, **own.sizes)
    assert all(torch.equal(a, b) for a, b in zip(timed, plain, strict=True)) and none.numel() == 0
    assert spans.shape == (3, torch.get_num_threads(), len(list(steps(fast.graph))), 3)
    assert ops.run_plan(images[:0], *given[1:], **own.sizes, timed=True)[5].shape[0] == 0


@pytest.mark.long
def test_opcheck():
    fast = build("concat-bc-100")
    images = make_images(fast, 2)
    own = fast.runner.own
    given = (images, fast.runner.weights, fast.thresholds, None, None, own.words, *own.sizes.values(), 0, True)
    # Times differ from call to call, so the tests that compare outputs cannot be run.
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.dsn.run_plan.default, given, test_utils=checks)


@pytest.mark.long
def test_trace_table_and_picture():
    fast = build("concat-bc-100")
    found = timeline(fast, make_images(fast, 3), half(fast, 3), runs=1)
    events = json.loads(json.dumps(trace(found), allow_nan=False))["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert sum(event["ph"] == "X" for event in events) == len(found.spans)
    assert all({"name", "ts", "dur", "pid", "tid", "args"} <= set(event) for event in events if event["ph"] == "X")
    table = rows(found)
    assert [row["name"] for row in table] == found.steps
    assert sum(row["share"] for row in table) == pytest.approx(1)
    written = json.loads(json.dumps(document(found), allow_nan=False))
    assert written["batch"] == 3 and len(written["steps"][0]["ms_by_sample"]) == 3
    assert written["kinds"] == kinds(found)
    svg = picture(lambda colours: timeline_figure(found, colours), "svg").decode()
    assert "microseconds" in svg and re.search(r"coarse\.layer\.\d", svg)
    assert picture(lambda colours: timeline_figure(found, colours), "png").startswith(b"\x89PNG")


def test_kinds_share_out_the_steps():
    fast = build("skipnet-38-rnn")
    found = timeline(fast, make_images(fast, 3), half(fast, 3), runs=1)
    every = kinds(found)
    assert sum(row["steps"] for row in every) == len(found.steps) and len(every) < len(found.steps)
    whole = found.total_ms * found.threads
    assert sum(row["share"] for row in every) == pytest.approx(found.ms.sum().item() / whole)
    assert [row["share"] for row in every] == sorted((row["share"] for row in every), reverse=True)
    done = sum(row["gflops"] * row["share"] for row in every if row["gflops"]) * whole * 1e6 / 2
    assert done == pytest.approx(found.macs.sum().item())
    assert any(re.fullmatch(r"conv2d 3 x 3, (\d+) to \1, (\d+) x \2", row["kind"]) for row in every)


def test_refusals():
    fast = build("concat-bc-100")
    with pytest.raises(UserError, match="the batch is empty; expected at least one image to time"):
        timeline(fast, make_images(fast, 2)[:0])
    with pytest.raises(UserError, match="runs is 0; expected at least 1"):
        timeline(fast, make_images(fast, 2), runs=0)
    for other in (make_small("concat-bc-100"), dsn_kernels.accelerate(own_network("lsn-concat-bc-100"))):
        with pytest.raises(UserError, match="a timeline is of a network that runs as a plan on the CPU"):
            timeline(other, make_images(other, 2))
