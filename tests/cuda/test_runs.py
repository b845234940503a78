"""Plans in which something reads what a launch that walks several instructions might keep to itself."""

import pytest
import torch
from small_graphs import ONE, WIDE, Weights

from csrc.simt.host_runner import HostRunner
from dsn_kernels import graph as g
from dsn_kernels.lower.cuda import lower

SIDE, CHANNELS = 8, 16
ENDS = {"accumulate": True, "activation": "relu", "pool": True}


class Builder(g.Graph):
    """A graph that begins with an image of ``side`` x ``side`` pixels. ``negative``: all weights of its convolutions
    are."""

    def __init__(self, channels=CHANNELS, negative=False, side=SIDE):
        super().__init__()
        self.random, self.negative = Weights(), negative
        self.x, self.inner = self.map(channels, side), self.map(channels, side)
        self.add(g.Load(dst=self.x, in_channels=channels))

    def conv(self, src, dst, window=WIDE, **fields):
        conv = self.random.conv(self.maps[dst].channels, self.maps[src].channels, window.rows)
        if self.negative:
            conv["weight"] = -conv["weight"].abs()
        self.add(g.Conv2d(src=src, dst=dst, window=window, **fields, **conv))

    def gate(self, src, number, channels=None):
        self.add(g.Gate(src=src, first_gate=number, **self.random.linear(1, channels or self.maps[src].channels)))

    def pool_sums(self):
        self.add(g.PoolSums(src=self.x, in_channels=CHANNELS))

    def linear(self, src, at=0):
        self.add(g.Linear(src=src, out_offset=at, **self.random.linear(3, self.maps[src].channels)))

    def unit(self, gate=-1, channels=None):
        """``gate`` decides on it, from so many of the map's channels."""
        with self.region("residual_unit"):
            if gate >= 0:
                self.gate(self.x, gate, channels)
            self.conv(self.x, self.inner, activation="relu", only_if=gate)
            self.conv(self.inner, self.x, only_if=gate, **ENDS)

    def enter(self):
        """A unit that leads to a map of half the side; which is then the one at hand."""
        before, self.x, self.inner = self.x, *(self.map(2 * CHANNELS, SIDE // 2) for _ in range(2))
        with self.region("residual_unit"):
            self.conv(before, self.x, ONE._replace(stride=2), pool=True)
            self.conv(before, self.inner, WIDE._replace(stride=2), activation="relu")
            self.conv(self.inner, self.x, **ENDS)

    def add_middles(self, channels=CHANNELS):
        """Maps between the convolutions of units with three."""
        self.middles = tuple(self.map(channels, self.maps[self.x].height) for _ in range(2))

    def bottleneck(self):
        deep, wide = self.middles
        with self.region("bottleneck_unit"):
            self.conv(self.x, deep, ONE, activation="relu", before=self.random.norm(CHANNELS))
            self.conv(deep, wide, activation="relu")
            self.conv(wide, self.x, ONE, accumulate=True)

    def update(self, size=8):
        """A unit of a gradually updated layer: of its first channels."""
        deep, wide = self.middles
        with self.region("update_unit"):
            self.conv(self.x, deep, ONE, activation="relu")
            self.conv(deep, wide, activation="relu")
            last = self.random.conv(size, self.maps[wide].channels)
            self.add(g.Conv2d(src=wide, dst=self.x, window=ONE, accumulate=True, **last))

    def store(self, map):
        self.add(g.Store(src=map, in_channels=self.maps[map].channels))

    def runners(self, dtype):
        """By launches that walk several nodes, and by one for each as on a device without clusters."""
        plan = lower(self, dtype)
        return HostRunner(plan), HostRunner(plan, clusters=False)


def early_exit(b):
    """A linear map of the first map's pooled vector behind a run that goes on to another."""
    first = b.x
    b.unit(), b.unit(), b.enter(), b.unit()
    b.linear(first), b.linear(b.x, 3)


def gated_on_the_second_map(b):
    """No gate reads the first map."""
    b.unit(), b.enter()
    for number in range(2):
        b.unit(number)
    b.linear(b.x)


def narrow_gate(b):
    """A gate reads some of the map's channels: it is decided elsewhere, and each unit is a run of its own."""
    b.pool_sums()
    for number in range(2):
        b.unit(number, 12)
    b.linear(b.x)


def narrow_gate_behind(b):
    """A gate behind the units reads some of the map's channels."""
    b.unit(), b.unit(), b.gate(b.x, 0, 12)
    b.conv(b.x, b.inner, activation="relu", only_if=0), b.linear(b.x)


def gates_of_different_widths(b):
    """Two gates of one pooled vector, of which one reads a part: not decided together."""
    b.pool_sums()
    b.gate(b.x, 0), b.gate(b.x, 1, 12)
    b.conv(b.x, b.inner, activation="relu", only_if=1), b.linear(b.x)


def added_to(b):
    """The map between the convolutions is added to, and read."""
    b.unit(), b.unit()
    b.add(g.Pointwise(accumulate=True, src=b.x, dst=b.inner, in_channels=CHANNELS))
    b.store(b.inner)


def filled_by_some(b):
    """The map between the convolutions is filled where a gate is open, and read by all."""
    b.unit(), b.unit(), b.gate(b.x, 0)
    b.conv(b.x, b.inner, activation="relu", only_if=0), b.store(b.inner)


def bottlenecks_added_to(b):
    """The same of the second map between a bottleneck unit's convolutions."""
    b.add_middles()
    b.bottleneck(), b.bottleneck()
    b.add(g.Pointwise(accumulate=True, src=b.x, dst=b.middles[1], in_channels=CHANNELS))
    b.store(b.middles[1])


def bottlenecks_read(b):
    """The first map between a bottleneck unit's convolutions is stored."""
    b.add_middles()
    b.bottleneck(), b.bottleneck()
    b.store(b.middles[0])


def bottlenecks_left(b):
    """Nothing reads them."""
    b.add_middles()
    b.bottleneck(), b.bottleneck()
    b.store(b.x)


# How many runs a launch may walk: of residual and of bottleneck units.
CASES = {
    early_exit: (2, 0),
    gated_on_the_second_map: (1, 0),
    narrow_gate: (2, 0),
    narrow_gate_behind: (1, 0),
    gates_of_different_widths: (0, 0),
    added_to: (0, 0),
    filled_by_some: (0, 0),
    bottlenecks_added_to: (0, 0),
    bottlenecks_read: (0, 0),
    bottlenecks_left: (0, 1),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_others_read_is_there(host, case):
    """The same as where each instruction is a launch, as on a device without clusters."""
    b, batch = Builder(), 3
    case(b)
    gates, (walked, single) = b.gates, b.runners(torch.float32)
    image, limits = torch.randn(batch, CHANNELS, SIDE, SIDE), torch.full((gates,), 0.5)
    forced = (torch.arange(batch * gates).reshape(batch, gates) % 2).to(torch.uint8)
    schedule, launches = walked.schedule(batch), single.schedule(batch)
    assert (len(schedule.stage_runs), len(schedule.bottleneck_runs)) == CASES[case]
    assert not launches.stage_runs and not launches.bottleneck_runs
    for actual, expected in zip(walked(image, limits, forced), single(image, limits, forced), strict=True):
        tolerance = 1e-4 * actual.dtype.is_floating_point
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(walked(image, limits, forced).macs, g.count_macs(b, forced))


def updates(b):
    """Units of a gradually updated layer."""
    b.add_middles(8)
    b.update(), b.update()
    b.store(b.x)


@pytest.mark.parametrize("blocks", [3, 5, 6, 7])
@pytest.mark.parametrize(("case", "runs"), [(updates, "gradual_runs"), (bottlenecks_left, "bottleneck_runs")])
def test_clusters_of_any_size(host, case, runs, blocks):
    """Maps of two rows for each block; the same as by one block a launch."""
    side, batch = 2 * blocks, 1
    b = Builder(side=side)
    case(b)
    walked, single = b.runners(torch.float16)
    assert [run[2:4] for run in getattr(walked.schedule(batch), runs)] == [[2, blocks]]
    image, limits = torch.randn(batch, CHANNELS, side, side), torch.empty(0)
    for seed in range(2):
        host.seeded(seed)
        actual, expected = walked(image, limits), single(image, limits)
        torch.testing.assert_close(actual.map, expected.map, rtol=2e-3, atol=2e-3)
        assert torch.equal(actual.macs, expected.macs)


def test_an_infinite_input_spreads_no_further(host):
    """Where all filters make it -inf and the ReLU zero, what pads 12 channels to whole k-steps is zero too, not NaN."""
    b = Builder(channels=12, negative=True)
    b.unit(), b.unit(), b.store(b.x)
    image, limits = torch.randn(1, 12, SIDE, SIDE), torch.empty(0)
    image[0, 0, 3, 3] = torch.inf
    walked, single = b.runners(torch.float16)
    assert walked.schedule(1).stage_runs
    for runner in (walked, single):
        assert runner(image, limits).map.isinf().nonzero().tolist() == [[0, 0, 3, 3]]
        assert not runner(image, limits).map.isnan().any()
