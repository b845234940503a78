"""What the kernels do, counted on the host runner, against formulas: nothing is done for a skipped layer."""

import pytest
import torch
from references import make_block

import dsn_kernels
import dsn_models
from benchmarks.gpu_model.map_work import Cuts
from benchmarks.gpu_model.work import network_work
from csrc.simt.host_runner import MULTIPROCESSORS
from dsn_kernels import Part, Target
from dsn_kernels.graph import DenseBlock
from tests.networks import SMALL, make_images, randomise

DTYPE = torch.float16
NETWORKS = ["concat-bc-100", "concat-40", "add-166", "dsn-navon"]


def make_runner(name, clusters=True, dtype=DTYPE, **overrides):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name, **{**SMALL[name], **overrides}))
    runner = dsn_kernels.accelerate(model, dtype=dtype, backend="simt").runner
    runner.clusters = clusters
    return runner, make_images(model, 3)


def run(simt, runner, x, gates):
    simt.reset_counters()
    out = runner(x, torch.full((runner.graph.gates,), 0.5), gates)
    assert torch.equal(out.gates, gates)
    return simt.counters()


def expected(runner, gates):
    return network_work(runner.plan, gates, Cuts.of(runner.schedule(len(gates)), MULTIPROCESSORS), 2)


@pytest.mark.parametrize(("name", "clusters"), [*((name, True) for name in NETWORKS), ("concat-bc-100", False)])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_tensor_core_instructions_and_blocks(simt, name, clusters, density):
    runner, x = make_runner(name, clusters, image_size=12)
    gates = (torch.rand(3, runner.graph.gates, generator=torch.Generator().manual_seed(1)) < density).byte()
    counts = run(simt, runner, x, gates)
    work = expected(runner, gates)
    assert counts["mma_m16n8k16_f16"] == sum(launch.mma for launch in work)
    assert counts["launches"] == len(work)
    assert counts["blocks"] == sum(launch.blocks for launch in work)
    assert counts["idle_blocks"] == sum(launch.blocks - launch.active for launch in work)


def test_a_skipped_layer_reads_its_gate_word_and_nothing_more(simt):
    """A layer that no sample runs: its blocks load 8 bytes each; nobody reads its slice, its weights or the state."""
    loaded, blocks = [], []
    for layers in (1, 2):
        fast = Part(make_block(24, layers), Target("simt", DTYPE))
        fast.runner.clusters = False
        simt.reset_counters()
        fast(torch.randn(3, 24, 8, 8), 0.5, torch.zeros(3, layers, dtype=torch.uint8))
        counts = simt.counters()
        assert counts["mma_m16n8k16_f16"] == 0
        loaded.append(counts["global_load_bytes"])
        blocks.append(counts["idle_blocks"])
    added = blocks[1] - blocks[0]
    assert added > 0 and added % 3 == 0
    # Deciding its gate: 36 weights and means, a bias to every lane. Storing zeros: a flag for each of 12 x 64 values.
    others = 3 * (36 * 8 + 32 * 4 + 16) + 3 * 12 * 64
    assert 8 * added <= loaded[1] - loaded[0] <= 8 * added + others


def test_a_skipped_layer_of_a_resident_block_reads_its_gate_alone(simt):
    """Every thread of a sample's blocks reads what decides, and one stores the gate; no launch, no barrier."""
    counts = []
    for layers in (1, 2):
        fast = Part(make_block(24, layers), Target("simt", DTYPE))
        simt.reset_counters()
        fast(torch.randn(3, 24, 8, 8), 0.5, torch.zeros(3, layers, dtype=torch.uint8))
        counts.append(simt.counters())
    one, two = counts
    assert two["mma_m16n8k16_f16"] == 0
    for same in ("launches", "blocks", "cluster_barriers"):
        assert two[same] == one[same]
    warps = 8 * (two["blocks"] - two["idle_blocks"])  # an upper bound: other launches have warps too
    gate = warps * (36 * 4 + 32 * (4 + 1))  # weights once a warp, bias and forced gate by every lane
    assert two["global_load_bytes"] - one["global_load_bytes"] <= 3 * 12 * 64 + 2 * gate


@pytest.mark.parametrize("clusters", [True, False])
def test_dropped_slices_save_their_instructions(simt, clusters):
    """The second saving: with every earlier layer shut, a layer's 1x1 multiplies the block's input alone."""
    runner, x = make_runner("concat-bc-100", clusters, block_layers=(4, 1, 1))
    block = next(n for n in runner.graph.nodes if isinstance(n, DenseBlock) and len(n.layers) == 4)
    both = torch.zeros(2, 3, runner.graph.gates, dtype=torch.uint8)
    both[:, :, block.first_gate + 3] = 1
    both[1, :, block.first_gate : block.first_gate + 3] = 1
    alone, behind = (run(simt, runner, x, gates)["mma_m16n8k16_f16"] for gates in both)
    works = [expected(runner, gates) for gates in both]
    assert (alone, behind) == tuple(sum(launch.mma for launch in work) for work in works)
    if clusters:
        return
    layers = [[launch.mma for launch in work if launch.name == "layer"][3] for work in works]
    pixels_in_tiles = 3 * 2 * 2  # three samples of 64 pixels: two passes of two 16-pixel tiles
    columns = 48 // 8
    steps = 15 // 4 + 1 - 2  # 24 + 3 x 12 channels are 15 groups; 24 alone are 6: k-steps of four groups
    assert layers[1] - layers[0] == pixels_in_tiles * columns * steps


def test_float32_uses_no_tensor_cores(simt):
    runner, x = make_runner("concat-bc-100", dtype=torch.float32)
    gates = torch.ones(1, runner.graph.gates, dtype=torch.uint8)
    assert run(simt, runner, x[:1], gates)["mma_macs"] == 0
