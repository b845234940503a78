"""Samples that a thread takes side by side, and the constants by which it takes so many."""

import json

import pytest
import torch

import dsn_kernels
from dsn_kernels import _C, costs
from dsn_models import UserError
from tests.networks import make_images, make_planned, make_small, random_gates


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    costs.measured_costs.cache_clear()
    yield tmp_path / "dsn-kernels" / "costs.json"
    costs.measured_costs.cache_clear()


@pytest.fixture(params=["resident", "compacted"])
def strategy(request, monkeypatch):
    monkeypatch.setenv("DSN_STRATEGY", request.param)
    return request.param


@pytest.mark.long
@pytest.mark.parametrize("name", ["gaternet-all", "gaternet-preact"])
def test_results_do_not_depend_on_grouping(name, strategy, threads):
    fast = dsn_kernels.accelerate(make_planned(name))
    images = make_images(fast, 23)
    torch.manual_seed(1)
    patterns = torch.randint(0, 2, (5, sum(fast.layers.values())), dtype=torch.uint8)
    patterns[1], patterns[2] = 0, 1
    drawn = patterns[torch.randint(0, 5, (23,))]
    gates = {"filters": drawn}
    each = [(fast(images[i : i + 1], forced_gates={"filters": drawn[i : i + 1]}), fast.last_macs) for i in range(23)]
    assert torch.equal(fast(images, forced_gates=gates), torch.cat([logits for logits, _ in each]))
    assert torch.equal(fast.last_macs, torch.cat([macs for _, macs in each]))
    assert torch.equal(fast.last_gates["filters"], drawn)


@pytest.mark.long
@pytest.mark.parametrize("name", ["concat-bc-100", "add-166", "skipnet-38-rnn"])
def test_results_do_not_depend_on_the_strategy(name, threads, monkeypatch):
    """Maps that the second cache does not hold, a layer at a time over the samples that run it."""
    model, found = make_small(name, image_size=80), []
    for strategy in ("resident", "compacted"):
        monkeypatch.setenv("DSN_STRATEGY", strategy)
        fast = dsn_kernels.accelerate(model)
        images, gates = make_images(fast, 7), random_gates(fast, 7)
        logits = fast(images, forced_gates=gates)
        found.append([*(logits if isinstance(logits, tuple) else [logits]), fast.last_macs, *fast.last_scores.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_plan_is_run_by_its_own_costs(monkeypatch):
    """Two plans in one process: one computes a sample to its end before the next, the other both layer by layer."""
    torch.manual_seed(0)
    runners = {}
    for strategy in ("resident", "compacted"):
        monkeypatch.setenv("DSN_STRATEGY", strategy)
        runners[strategy] = dsn_kernels.accelerate(make_planned("gaternet-all")).runner
    resident, compacted = runners.values()
    image = torch.randn(4, *resident.graph.maps[0])
    forced = torch.ones(4, resident.graph.gates, dtype=torch.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for runner in (resident, compacted, resident):
            own, limits = runner.own, torch.full((runner.graph.gates,), 0.5)
            out = dsn_kernels.ops.run_plan(image, runner.weights, limits, forced, own.words, **own.sizes, timed=True)
            begin, end = out[5][:2, 0, :, 0], out[5][:2, 0, :, 1]
            one_by_one = bool(end[0].max() <= begin[1][begin[1] > 0].min())
            assert one_by_one == (runner is resident)
    finally:
        torch.set_num_threads(threads)


def test_a_state_goes_to_a_machine_of_other_costs(monkeypatch):
    first = dsn_kernels.accelerate(make_planned("gaternet-all"))
    monkeypatch.setenv("DSN_STRATEGY", "resident")
    second = dsn_kernels.accelerate(make_planned("gaternet-all"))
    words = [fast.runner.own.words for fast in (first, second)]
    assert not torch.equal(*words) and words[1][3:6].tolist() == [0, 0, 10**18]
    second.load_state_dict(first.state_dict())
    assert second.runner.own.words[5] == 10**18 and torch.equal(second.runner.weights, first.runner.weights)


def test_another_strategy_is_refused(monkeypatch, cache):
    monkeypatch.setenv("DSN_STRATEGY", "fast")
    with pytest.raises(UserError, match="DSN_STRATEGY is 'fast'; expected one of resident, compacted, or none"):
        costs.costs()


def test_measured_once_and_kept(cache, monkeypatch):
    found = costs.costs()
    assert all(0 <= value < 1e-6 for value in found)
    assert list(json.loads(cache.read_text())["machines"].values()) == [found._asdict()]
    assert [file.name for file in cache.parent.iterdir()] == ["costs.json"]
    costs.measured_costs.cache_clear()
    monkeypatch.setattr(_C, "measure_costs", lambda: pytest.fail("measured again"))
    assert costs.costs() == found


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 0}', '{"schema": 1, "machines": {"X": {"pack": 1}}}', "\0"])
def test_a_broken_cache_is_measured_again(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    assert costs.costs() and json.loads(cache.read_text())["schema"] == costs.SCHEMA


def test_without_a_cache(monkeypatch, cache, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert costs.costs()
