"""The two branches on two streams: what runs beside what, and which events keep it right."""

import pytest
import torch

import dsn_kernels
import dsn_models
from tests.networks import SMALL, make_images, randomise

BATCH = 2
COARSE, FINE = 0, 1


class Played:
    """A small network on the host runner's streams, with arrays that a test may cut short."""

    def __init__(self, simt, clusters, **overrides):
        torch.manual_seed(0)
        self.simt = simt
        self.layer = "resident_block" if clusters else "bottleneck_layer"
        model = randomise(dsn_models.create("concat-bc-100", **{**SMALL["concat-bc-100"], **overrides}))
        self.runner = dsn_kernels.accelerate(model, dtype=torch.float16, backend="simt").runner
        self.runner.clusters = clusters
        self.images = make_images(model, BATCH)
        self.graph = self.runner.graph

    def run(self, seed=0, batch=BATCH, rows=BATCH, forgotten=-1, one_stream=False):
        """``batch`` samples of which ``rows`` are real and have memory: (logits, gates, launches in order)."""
        simt, graph = self.simt, self.graph
        simt.configure(seed=seed)
        network = self.runner.schedule(batch)
        images = self.images[:rows].contiguous()
        limits, count = torch.full((graph.gates,), 0.5), torch.tensor([rows], dtype=torch.int32)
        logits, scores = (torch.full((rows, n), float("nan")) for n in (graph.logits, graph.gates))
        gates = torch.full((rows, graph.gates), 255, dtype=torch.uint8)
        macs, stored = torch.zeros(rows, dtype=torch.int64), torch.empty(0)
        workspace = torch.full((network.workspace_bytes,), 255, dtype=torch.uint8)
        given = [simt.input(images, "image"), True, simt.input(self.runner.weights, "weights")]
        given += [simt.input(limits, "thresholds"), None, simt.input(count, "count")]
        given += [simt.output(t, n) for t, n in ((logits, "logits"), (gates, "gates"), (scores, "scores"))]
        given += [simt.output(macs, "macs"), simt.output(stored, "map"), simt.output(workspace, "workspace")]
        return logits, gates, network.run(*given, forgotten_wait=forgotten, one_stream=one_stream)


@pytest.fixture(scope="module", params=[True, False], ids=["clusters", "layers"])
def played(request, runner_module):
    runner_module.configure(seed=0)
    # 12 x 12: several blocks fill the first map, which count each other in memory that the first call must find zero.
    return Played(runner_module, request.param, block_layers=(1, 1, 1), image_size=12)


def streams_of(launches, name):
    return [stream for stream, kernel in launches if name in kernel]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_any_order_that_the_events_allow_gives_the_same(played, seed):
    """Seed 0 runs the coarse branch as far as it goes, seed 1 the fine one, the others mix them."""
    logits, gates, launches = played.run(seed)
    expected, expected_gates, _ = played.run()
    assert torch.equal(logits, expected) and torch.equal(gates, expected_gates)
    assert launches[0] == (COARSE, "memset")
    for stream in (COARSE, FINE):
        own = [kernel for s, kernel in launches if s == stream and kernel != "memset"]
        assert [k.split("::")[-1].split("_kernel")[0] for k in own] == [
            "stem",
            *[played.layer, "transition"] * 2,
            played.layer,
            "head",
        ]


def test_one_stream_serves_both_branches(played):
    """As in a capture by a host thread that has not called before, and so has made no stream."""
    logits, gates, launches = played.run(one_stream=True)
    expected, expected_gates, _ = played.run()
    assert torch.equal(logits, expected) and torch.equal(gates, expected_gates)
    assert {stream for stream, _ in launches} == {COARSE}


def test_the_branches_run_side_by_side(played):
    """Nothing of the coarse branch is needed before the fine one takes its guide, at its last transition."""
    _, _, launches = played.run(seed=1)  # the fine branch as far as it goes
    assert streams_of(launches[1:], "")[:4] == [FINE] * 4  # stem, layer, transition, layer
    guide = launches.index((FINE, launches[3][1]), 5)
    coarse_before = [kernel for stream, kernel in launches[1:guide] if stream == COARSE]
    assert sum(played.layer in kernel for kernel in coarse_before) == 3, "the guide is the coarse branch's last block"
    assert not any("head" in kernel for kernel in coarse_before), "and not its head"


def test_every_wait_is_needed(played):
    """Left out one at a time, each is missed in one order or another: a fault of the runner, or another result."""
    expected = played.run()[0]
    waits = 3  # the fine branch for the caller's stream, its transition for the guide, the caller for the fine branch

    def differs(forgotten, seed):
        try:
            return not torch.equal(played.run(seed, forgotten=forgotten)[0], expected)
        except played.simt.Error:
            return True

    for forgotten in range(waits):
        assert any(differs(forgotten, seed) for seed in (0, 1, 2)), forgotten
    assert not any(differs(waits, seed) for seed in (0, 1)), "there is no fourth"


def test_padding_is_neither_read_nor_written(played):
    """Inputs and outputs that end behind the last real sample: an access of the others would be out of bounds."""
    logits, gates, _ = played.run(batch=4, rows=BATCH)
    expected, expected_gates, _ = played.run()
    assert torch.equal(logits, expected) and torch.equal(gates, expected_gates)
