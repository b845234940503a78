"""Samples that a thread takes side by side, and the constants by which it takes so many."""

import json

import pytest
import torch

import dsn_kernels
from dsn_kernels import _C, costs
from dsn_models import UserError
from tests.networks import make_images, make_planned, make_small, random_gates

ALONE = {"fetch": 0.0, "pack": 0.0, "reload": 1.0}
TOGETHER = {"fetch": 1.0, "pack": 1.0, "reload": 0.0}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache; afterwards the kernels know this machine's costs again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    costs.costs.cache_clear()
    yield tmp_path / "dsn-kernels" / "costs.json"
    monkeypatch.undo()
    costs.costs.cache_clear()
    costs.costs()


@pytest.mark.long
@pytest.mark.parametrize("name", ["gaternet-all", "gaternet-preact"])
@pytest.mark.parametrize("grouping", [ALONE, TOGETHER])
def test_results_do_not_depend_on_grouping(name, grouping, threads, cache):
    fast = dsn_kernels.accelerate(make_planned(name))
    images = make_images(fast, 23)
    torch.manual_seed(1)
    patterns = torch.randint(0, 2, (5, sum(fast.layers.values())), dtype=torch.uint8)
    patterns[1], patterns[2] = 0, 1
    drawn = patterns[torch.randint(0, 5, (23,))]
    gates = {"filters": drawn}
    each = [(fast(images[i : i + 1], forced_gates={"filters": drawn[i : i + 1]}), fast.last_macs) for i in range(23)]
    _C.set_costs(**grouping)
    assert torch.equal(fast(images, forced_gates=gates), torch.cat([logits for logits, _ in each]))
    assert torch.equal(fast.last_macs, torch.cat([macs for _, macs in each]))
    assert torch.equal(fast.last_gates["filters"], drawn)


@pytest.mark.long
@pytest.mark.parametrize("name", ["concat-bc-100", "add-166", "skipnet-38-rnn"])
def test_results_do_not_depend_on_the_strategy(name, threads, cache, monkeypatch):
    """Maps that the second cache does not hold, a layer at a time over the samples that run it."""
    fast = dsn_kernels.accelerate(make_small(name, image_size=80))
    images, gates = make_images(fast, 7), random_gates(fast, 7)
    found = []
    for strategy in ("resident", "compacted"):
        monkeypatch.setenv("DSN_STRATEGY", strategy)
        costs.costs.cache_clear()
        costs.costs()
        logits = fast(images, forced_gates=gates)
        found.append([*(logits if isinstance(logits, tuple) else [logits]), fast.last_macs, *fast.last_scores.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_another_strategy_is_refused(monkeypatch, cache):
    monkeypatch.setenv("DSN_STRATEGY", "fast")
    with pytest.raises(UserError, match="DSN_STRATEGY is 'fast'; expected one of resident, compacted, or none"):
        costs.costs()


def test_measured_once_and_kept(cache, monkeypatch):
    found = costs.costs()
    assert sorted(found) == ["fetch", "pack", "reload"] and all(0 <= value < 1e-6 for value in found.values())
    assert list(json.loads(cache.read_text())["machines"].values()) == [found]
    assert [file.name for file in cache.parent.iterdir()] == ["costs.json"]
    costs.costs.cache_clear()
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
