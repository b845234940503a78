"""Interleaved timing, on a clock that the test moves."""

import pytest

from dsn_kernels.measure import InterleavedTimer, Latency


class Clock:
    """Time that only passes in the callables."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, *seconds):
        durations = iter(seconds)

        def run():
            self.log.append(name)
            self.now += next(durations, seconds[-1])

        return run


def test_percentiles_are_milliseconds_between_neighbours():
    latency = Latency.of([0.001 * i for i in range(1, 12)])
    assert latency.median == pytest.approx(6.0)
    assert latency.p10 == pytest.approx(2.0)
    assert latency.p90 == pytest.approx(10.0)
    assert Latency.of([0.25]).as_dict() == {"median": 250.0, "p10": 250.0, "p90": 250.0}
    assert Latency.of([0.001, 0.002]).median == pytest.approx(1.5)


def test_first_call_of_a_turn_is_not_counted():
    clock = Clock()
    timer = InterleavedTimer({"a": clock.call("a", 9.0, 1.0, 1.0)}, clock=clock)
    timer.run(seconds=0, min_rounds=1, turn_seconds=2.0)
    assert timer.samples["a"] == [[1.0, 1.0]]


def test_a_turn_lasts_its_seconds_and_counts_at_least_one_call():
    clock = Clock()
    timer = InterleavedTimer({"quick": clock.call("quick", 0.25), "slow": clock.call("slow", 5.0)}, clock=clock)
    timer.run(seconds=0, min_rounds=3, turn_seconds=1.0)
    assert len(timer.samples["quick"][0]) == 3 * 4
    assert len(timer.samples["slow"][0]) == 3 * 1


def test_a_turn_ends_after_whole_passes_over_the_inputs():
    clock = Clock()
    timer = InterleavedTimer({"a": [clock.call("x", 1.0), clock.call("y", 3.0)]}, clock=clock)
    timer.run(seconds=0, min_rounds=1, turn_seconds=5.0)
    assert timer.samples["a"] == [[1.0, 1.0], [3.0, 3.0]]
    assert clock.log == ["y", "x", "y", "x", "y"]
    assert timer.latencies()["a"].median == 2000.0


def test_inputs_are_pooled_by_the_mean_of_their_percentiles():
    latency = Latency.pooled([[0.001, 0.002, 0.003], [0.011], []])
    assert latency.median == pytest.approx((2 + 11) / 2)
    assert latency.p10 == pytest.approx((1.2 + 11) / 2) and latency.p90 == pytest.approx((2.8 + 11) / 2)


def test_everybody_has_one_turn_a_round_in_an_order_that_changes():
    clock = Clock()
    names = "abcde"
    timer = InterleavedTimer({n: clock.call(n, 1.0) for n in names}, clock=clock)
    timer.run(seconds=0, min_rounds=20, turn_seconds=0.5)
    turns = clock.log[::2]  # two calls a turn
    rounds = [turns[i : i + 5] for i in range(0, 100, 5)]
    assert all(sorted(r) == list(names) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


def test_rounds_go_on_until_the_time_is_up():
    clock = Clock()
    fractions = []
    timer = InterleavedTimer({"a": clock.call("a", 1.0), "b": clock.call("b", 1.0)}, clock=clock)
    timer.run(seconds=10.0, min_rounds=2, turn_seconds=0.5, on_round=fractions.append)
    assert len(timer.samples["a"][0]) == len(timer.samples["b"][0]) == 5  # 2 x 10 s, 4 s a round
    assert fractions == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_an_interruption_keeps_what_was_measured():
    clock = Clock()
    calls = 0

    def interrupted():
        nonlocal calls
        calls += 1
        clock.now += 1.0
        if calls == 6:
            raise KeyboardInterrupt

    timer = InterleavedTimer({"a": interrupted, "never": interrupted}, clock=clock)
    with pytest.raises(KeyboardInterrupt):
        timer.run(seconds=0, min_rounds=5, turn_seconds=0.5)
    assert sum(len(inputs[0]) for inputs in timer.samples.values()) == 2
    assert all(latency.median == 1000.0 for latency in timer.latencies().values())


def test_without_samples_there_is_no_latency():
    assert InterleavedTimer({"a": lambda: None}).latencies() == {}
