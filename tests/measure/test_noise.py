"""Which differences of medians noise explains: on drawn times whose truth is known."""

import numpy as np
import pytest

from dsn_kernels.measure.latency import Turn
from dsn_kernels.measure.noise import Noise


def drawn(generator, factors, rounds=20, drift=0.2, jitter=0.03):
    """Turns of contestants that take ``factors`` milliseconds, on a machine that drifts from round to round."""
    pace = 1 + drift * generator.random(rounds)
    return {
        name: [Turn([list(1e-3 * factor * p * (1 + jitter * generator.random(5)))]) for p in pace]
        for name, factor in factors.items()
    }


def test_a_thing_does_not_differ_from_itself():
    called = 0
    for seed in range(100):
        turns = drawn(np.random.default_rng(seed), {"a": 1.0, "b": 1.0})
        called += Noise(turns).ratio(1.0, "a", "b").called
    assert called <= 5


def test_a_difference_beyond_the_noise_is_called_on_the_right_side():
    for seed in range(20):
        turns = drawn(np.random.default_rng(seed), {"a": 1.0, "b": 1.5}, drift=0.05)
        faster, slower = Noise(turns).ratio(1.5, "a", "b"), Noise(turns).ratio(1 / 1.5, "b", "a")
        assert faster.called and faster.low > 1 and slower.called and slower.high < 1
        assert faster.low < 1.5 < faster.high and faster.noise < 0.1
        assert faster.low == pytest.approx(1 / slower.high, rel=1e-6)


def test_drift_of_the_machine_is_noise_of_one_but_cancels_in_a_ratio():
    turns = drawn(np.random.default_rng(0), {"a": 1.0, "b": 1.1}, rounds=40, drift=1.0, jitter=0.01)
    noise = Noise(turns)
    ratio = noise.ratio(1.1, "a", "b")
    assert noise.spread("a") > 0.1 > ratio.high - ratio.low
    assert not ratio.called  # the machine alone moves a by more


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_too_few_rounds_call_nothing(rounds):
    turns = drawn(np.random.default_rng(0), {"a": 1.0, "b": 9.0}, rounds=rounds) if rounds else {"a": [], "b": []}
    noise = Noise(turns)
    assert noise.rounds == rounds and noise.spread("a") is None
    ratio = noise.ratio(9.0, "a", "b")
    assert not ratio.called and ratio.noise is None and ratio.interval == [9.0, 9.0]


def test_what_is_compared_with_itself_is_even():
    ratio = Noise(drawn(np.random.default_rng(0), {"a": 1.0})).ratio(1.0, "a", "a")
    assert ratio.interval == [1.0, 1.0] and not ratio.called


def test_a_round_that_was_cut_short_is_left_out():
    turns = drawn(np.random.default_rng(0), {"a": 1.0, "b": 1.0}, rounds=6)
    turns["a"].append(Turn([[]]))
    turns["never"] = []
    assert Noise(turns).rounds == 6


def test_inputs_count_by_the_mean_of_their_medians():
    turns = {
        "a": [Turn([[1.0, 1.1], [3.0]]) for _ in range(8)],
        "b": [Turn([[2.0], [6.0, 6.2, 6.1]]) for _ in range(8)],
    }
    ratio = Noise(turns).ratio(2.0, "a", "b")
    assert ratio.called and ratio.interval == [2.0, 2.0] and ratio.noise == 0.0
