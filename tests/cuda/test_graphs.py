"""CUDA graphs of whole networks; these need a GPU."""

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_models.errors import UserError
from tests.networks import SMALL, make_images, randomise

BRANCHES = ("coarse", "fine")


@pytest.fixture(scope="module")
def pair(gpu):
    torch.manual_seed(0)
    model = randomise(dsn_models.create("concat-bc-100", **SMALL["concat-bc-100"]))
    options = {"dtype": torch.float16, "device": gpu}
    return dsn_kernels.accelerate(model, **options), dsn_kernels.accelerate(model, cuda_graph=(2, 8), **options)


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 0, 5])
def test_padded_batches_give_what_single_launches_give(gpu, pair, batch):
    plain, graphed = pair
    x = make_images(plain, 8)[:batch].to(gpu)
    for _ in range(2):
        assert torch.equal(torch.cat(graphed(x), 1), torch.cat(plain(x), 1))
    for name in BRANCHES:
        assert torch.equal(graphed.last_gates[name], plain.last_gates[name])
    assert torch.equal(graphed.last_macs, plain.last_macs)


def test_one_graph_for_every_pattern(gpu, pair):
    plain, graphed = pair
    x = make_images(plain, 8).to(gpu)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        forced = {n: torch.randint(0, 2, (8, plain.layers[n]), generator=generator).byte().to(gpu) for n in BRANCHES}
        assert torch.equal(torch.cat(graphed(x, forced), 1), torch.cat(plain(x, forced), 1))
    for thresholds in (0.0, 1.0):
        assert torch.equal(torch.cat(graphed(x, None, thresholds), 1), torch.cat(plain(x, None, thresholds), 1))


def test_nothing_waits_for_the_device(gpu, pair):
    for fast in pair:
        x = make_images(fast, 8).to(gpu)
        fast(x)
        torch.cuda.set_sync_debug_mode("error")
        try:
            fast(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_results_of_a_call_stay(gpu, pair):
    _, graphed = pair
    x = make_images(graphed, 8).to(gpu)
    first = graphed(x)[0]
    kept = first.clone()
    graphed(-x)
    assert torch.equal(first, kept)


def test_inside_and_outside_of_inference_mode(gpu, pair):
    plain, _ = pair
    x = make_images(plain, 4).to(gpu)
    graphed = dsn_kernels.accelerate(
        randomise(dsn_models.create("concat-bc-100", **SMALL["concat-bc-100"])), device=gpu, cuda_graph=True
    )
    with torch.inference_mode():
        inside = graphed(x)
    torch.testing.assert_close(graphed(x), inside, rtol=0, atol=0)


def test_a_batch_beyond_the_captured_sizes(gpu, pair):
    _, graphed = pair
    with pytest.raises(UserError, match="a batch of 9 images is beyond the captured sizes, which end at 8: split it"):
        graphed(make_images(graphed, 9).to(gpu))


def test_tensors_on_two_devices(gpu, pair):
    plain, _ = pair
    with pytest.raises(UserError, match="images are on cpu; expected cuda:0"):
        plain(make_images(plain, 2))
    forced = {n: torch.zeros(2, plain.layers[n], dtype=torch.uint8) for n in BRANCHES}
    with pytest.raises(UserError, match=r"forced_gates\['coarse'\] is on cpu; expected cuda:0"):
        plain(make_images(plain, 2).to(gpu), forced)
    with pytest.raises(RuntimeError, match="run_plan: forced_gates is not on a GPU, but the image is"):
        plain.runner(make_images(plain, 2).to(gpu), plain.thresholds, torch.cat([*forced.values()], 1))


def test_out_of_memory_is_one_line(gpu, pair):
    plain, _ = pair
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        with pytest.raises(RuntimeError, match="run_plan: out of memory on cuda:0 for the .* MiB") as error:
            plain(torch.zeros(100_000, 3, 8, 8, dtype=torch.float16, device=gpu))
    except torch.OutOfMemoryError:
        pytest.skip("the images themselves did not fit")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(error.value)
