"""Plans in which something reads what a launch that walks several instructions might keep to itself."""

import pytest
import torch
from torch import nn

from csrc.simt.host_runner import HostRunner
from dsn_kernels import _C
from dsn_kernels.nn.packing import Packer, pack_conv2d, pack_gate, pack_linear
from dsn_kernels.ops.network import Plan

RELU, ACCUMULATE, POOL, NORMALISE = (_C.FLAGS[name] for name in ("relu", "accumulate", "pool", "normalise"))
SIDE, CHANNELS = 8, 16


class Builder:
    """A plan that begins with an image of ``side`` x ``side`` pixels. ``negative``: all weights of its convolutions
    are."""

    def __init__(self, channels=CHANNELS, negative=False, side=SIDE):
        torch.manual_seed(0)
        self.channels, self.negative, self.side = channels, negative, side
        self.packer, self.plan = Packer(), Plan()
        self.x, self.inner = self.buffer(), self.buffer()
        self.plan.add("load", dst=self.x, in_channels=channels)

    def buffer(self, channels=None, side=None):
        return self.plan.buffer(channels or self.channels, side or self.side, side or self.side)

    def conv(self, src, dst, taps=9, stride=1, flags=RELU, only_if=-1, norm=None):
        conv = nn.Conv2d(self.plan.buffers[src][0], self.plan.buffers[dst][0], 3 if taps == 9 else 1, stride, taps // 9)
        if self.negative:
            conv.weight.data.abs_().neg_()
        fields = pack_conv2d(self.packer, conv, None, norm)
        self.plan.add("conv2d", src=src, dst=dst, flags=flags, only_if=only_if, **fields)

    def gate(self, src, number, channels=None):
        channels = channels or self.plan.buffers[src][0]
        weights = pack_gate(self.packer, torch.randn(1, channels), torch.zeros(1))
        fields = {"gate": _C.GATES["soft"], "first_gate": number, "weights": weights}
        self.plan.add("gate", src=src, in_channels=channels, **fields)

    def linear(self, src, at=0):
        channels = self.plan.buffers[src][0]
        weights = pack_linear(self.packer, nn.Linear(channels, 3))
        self.plan.add("linear", src=src, in_channels=channels, out_channels=3, out_offset=at, weights=weights)

    def unit(self, gate=-1):
        """``gate``: decided by the instruction before."""
        with self.plan.region("residual_unit", front=int(gate >= 0)):
            self.conv(self.x, self.inner, only_if=gate)
            self.conv(self.inner, self.x, flags=ACCUMULATE | RELU | POOL, only_if=gate)

    def enter(self):
        """A unit that leads to a map of half the side; which is then the one at hand."""
        before, self.x, self.inner = self.x, self.buffer(2 * CHANNELS, SIDE // 2), self.buffer(2 * CHANNELS, SIDE // 2)
        with self.plan.region("residual_unit"):
            self.conv(before, self.x, 1, 2, POOL)
            self.conv(before, self.inner, 9, 2)
            self.conv(self.inner, self.x, flags=ACCUMULATE | RELU | POOL)

    def bottleneck(self):
        deep, wide = self.middles
        with self.plan.region("bottleneck_unit"):
            self.conv(self.x, deep, 1, flags=NORMALISE | RELU, norm=nn.BatchNorm2d(CHANNELS).eval())
            self.conv(deep, wide)
            self.conv(wide, self.x, 1, flags=ACCUMULATE)

    def update(self, width=8, size=8):
        """A unit of a gradually updated layer: of its first channels."""
        deep, wide = self.middles
        first, conv, last = nn.Conv2d(CHANNELS, width, 1), nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, size, 1)
        steps = (first, self.x, deep, RELU), (conv, deep, wide, RELU), (last, wide, self.x, ACCUMULATE)
        with self.plan.region("update_unit"):
            for module, src, dst, flags in steps:
                self.plan.add("conv2d", src=src, dst=dst, flags=flags, **pack_conv2d(self.packer, module, None))

    def store(self, buffer):
        self.plan.add("store", src=buffer, in_channels=self.plan.buffers[buffer][0])


def early_exit(b):
    """A linear map of the first map's pooled vector behind a run that goes on to another."""
    first = b.x
    b.unit(), b.unit(), b.enter(), b.unit()
    b.linear(first), b.linear(b.x, 3)


def gated_on_the_second_map(b):
    """No gate reads the first map."""
    b.unit(), b.enter()
    for number in range(2):
        b.gate(b.x, number), b.unit(number)
    b.linear(b.x)


def narrow_gate(b):
    """A gate reads some of the map's channels: it is decided elsewhere, and each unit is a run of its own."""
    b.plan.add("pool_sums", src=b.x, in_channels=CHANNELS)
    for number in range(2):
        b.gate(b.x, number, 12), b.unit(number)
    b.linear(b.x)


def narrow_gate_behind(b):
    """A gate behind the units reads some of the map's channels."""
    b.unit(), b.unit(), b.gate(b.x, 0, 12)
    b.conv(b.x, b.inner, only_if=0), b.linear(b.x)


def gates_of_different_widths(b):
    """Two gates of one pooled vector, of which one reads a part: not decided together."""
    b.plan.add("pool_sums", src=b.x, in_channels=CHANNELS)
    b.gate(b.x, 0), b.gate(b.x, 1, 12)
    b.conv(b.x, b.inner, only_if=1), b.linear(b.x)


def added_to(b):
    """The map between the convolutions is added to, and read."""
    b.unit(), b.unit()
    b.plan.add("add", src=b.x, dst=b.inner, in_channels=CHANNELS)
    b.store(b.inner)


def filled_by_some(b):
    """The map between the convolutions is filled where a gate is open, and read by all."""
    b.unit(), b.unit(), b.gate(b.x, 0)
    b.conv(b.x, b.inner, only_if=0), b.store(b.inner)


def bottlenecks_added_to(b):
    """The same of the second map between a bottleneck unit's convolutions."""
    b.middles = b.buffer(), b.buffer()
    b.bottleneck(), b.bottleneck()
    b.plan.add("add", src=b.x, dst=b.middles[1], in_channels=CHANNELS)
    b.store(b.middles[1])


def bottlenecks_read(b):
    """The first map between a bottleneck unit's convolutions is stored."""
    b.middles = b.buffer(), b.buffer()
    b.bottleneck(), b.bottleneck()
    b.store(b.middles[0])


def bottlenecks_left(b):
    """Nothing reads them."""
    b.middles = b.buffer(), b.buffer()
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_others_read_is_there(host, case):
    """The same as where each instruction is a launch, as on a device without clusters."""
    b, batch = Builder(), 3
    case(b)
    words, gates = b.packer.tensor(), b.plan.gates
    walked, single = (HostRunner(b.plan, words, torch.float32, clusters) for clusters in (True, False))
    image, limits = torch.randn(batch, CHANNELS, SIDE, SIDE), torch.full((gates,), 0.5)
    forced = (torch.arange(batch * gates).reshape(batch, gates) % 2).to(torch.uint8)
    schedule, launches = walked.schedule(batch), single.schedule(batch)
    assert (len(schedule.stage_runs), len(schedule.bottleneck_runs)) == CASES[case]
    assert not launches.stage_runs and not launches.bottleneck_runs
    for actual, expected in zip(walked(image, limits, forced), single(image, limits, forced), strict=True):
        tolerance = 1e-4 * actual.dtype.is_floating_point
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    macs = b.plan.macs(forced)
    assert torch.equal(walked(image, limits, forced).macs, macs.expand(batch))


def updates(b):
    """Units of a gradually updated layer."""
    b.middles = b.buffer(8), b.buffer(8)
    b.update(), b.update()
    b.store(b.x)


@pytest.mark.parametrize("blocks", [3, 5, 6, 7])
@pytest.mark.parametrize(("case", "runs"), [(updates, "gradual_runs"), (bottlenecks_left, "bottleneck_runs")])
def test_clusters_of_any_size(host, case, runs, blocks):
    """Maps of two rows for each block; the same as by one block a launch."""
    side, batch = 2 * blocks, 1
    b = Builder(side=side)
    case(b)
    walked, single = (HostRunner(b.plan, b.packer.tensor(), torch.float16, clusters) for clusters in (True, False))
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
    walked, single = (HostRunner(b.plan, b.packer.tensor(), torch.float16, clusters) for clusters in (True, False))
    assert walked.schedule(1).stage_runs
    for runner in (walked, single):
        assert runner(image, limits).map.isinf().nonzero().tolist() == [[0, 0, 3, 3]]
        assert not runner(image, limits).map.isnan().any()
