"""Throughput of parts of a network: ``pytest benchmarks/test_kernels.py``; executed GFLOP/s are in ``extra_info``.

Shapes are those of concat-bc-100 (bottleneck) and concat-40 (plain) on 32 x 32 images.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dsn_models
from dsn_kernels import Part

BATCHES = (1, 16)


def branch(name):
    torch.manual_seed(0)
    return dsn_models.create(name).eval().coarse


def measure(benchmark, module, *arguments):
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            module(*arguments)
        benchmark(module, *arguments)
    if benchmark.stats is not None:  # None with --benchmark-disable
        gigaflops = counter.get_total_flops() / benchmark.stats["median"] / 1e9
        benchmark.extra_info["gflops"] = round(gigaflops, 1)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("skipped", [0.0, 0.5, 1.0], ids=["open", "half", "shut"])
@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("name", ["concat-bc-100", "concat-40"])
def test_dense_block(benchmark, name, block, skipped, batch):
    module = branch(name).blocks[block]
    channels, side = module.gates[0].linear.in_features, 32 >> block
    generator = torch.Generator().manual_seed(0)
    forced = (torch.rand(batch, len(module.layers), generator=generator) >= skipped).to(torch.uint8)
    images = torch.randn(batch, channels, side, side, generator=generator)
    measure(benchmark, Part(module), images, 0.5, forced)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("transition", [0, 1])
def test_preact_conv2d(benchmark, transition, batch):
    module = branch("concat-bc-100").transitions[transition]
    side = 32 >> transition
    measure(benchmark, Part(module), torch.randn(batch, module.conv.in_channels, side, side))


@pytest.mark.parametrize("batch", BATCHES)
def test_head(benchmark, batch):
    module = branch("concat-bc-100").head
    measure(benchmark, Part(module), torch.randn(batch, module.classifier.in_features, 8, 8))
