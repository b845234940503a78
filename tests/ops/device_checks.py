"""What the CUDA and the Triton kernels are held to alike.

A place has the name of a backend, ``backend``, and its ``device``.
"""

import copy

import torch
from references import make_block
from stage_parts import images, make_selected, masks, residual_units, run_reference, run_selected

import dsn_kernels
from dsn_kernels import Part, Target
from dsn_kernels.graph import count_macs
from tests import checks
from tests.checks import assert_as_exact_as_torch, assert_gates_agree, same_dtype
from tests.networks import make_images, randomise
from tests.own_networks import UsersNetwork

BLOCKS = {
    "bottleneck": {"channels": 24, "layers": 4},
    "plain": {"channels": 24, "layers": 4, "bottleneck": False},
    "add": {"channels": 16, "layers": 4, "merge": "add"},
    "soft": {"channels": 24, "layers": 3, "gate": "soft"},
    "growth-6": {"channels": 12, "layers": 3, "growth": 6, "bottleneck": False},
    "growth-32": {"channels": 64, "layers": 2, "growth": 32},
    "growth-20-plain": {"channels": 10, "layers": 2, "growth": 20, "bottleneck": False},
    "one-layer": {"channels": 5, "layers": 1, "growth": 7},
}
PATTERNS = ("own", "open", "shut", "random")


def block_gates(batch, layers, seed=0):
    return torch.randint(0, 2, (batch, layers), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def forced_gates(pattern, batch, layers):
    """Of a block, by a name of ``PATTERNS``; None where it decides on its own."""
    return {
        "own": None,
        "open": torch.ones(batch, layers, dtype=torch.uint8),
        "shut": torch.zeros(batch, layers, dtype=torch.uint8),
        "random": block_gates(batch, layers),
    }[pattern]


def make_fast(place, part, dtype):
    return Part(part, Target(place.backend, dtype)).to(place.device)


def check_block(place, fast, block, x, dtype, forced):
    moved = None if forced is None else forced.to(place.device)
    y, taken, scores = (t.cpu() for t in fast(x.to(place.device), 0.5, moved))
    gates = {"threshold": 0.5, "forced": taken}
    reference, _, reference_scores = same_dtype(block, x, torch.float64, **gates)
    assert_as_exact_as_torch(y, same_dtype(block, x, dtype, **gates)[0], reference)
    if forced is not None:
        assert torch.equal(taken, forced)
    if dtype == torch.float32 and forced is None:
        assert_gates_agree(taken, scores, reference_scores, 0.5)
    elif dtype == torch.float32:
        torch.testing.assert_close(scores.double(), reference_scores, rtol=0, atol=2e-5)
    return y


def check_without_gates(place, module, x, dtype):
    """Of a part that has none."""
    y = make_fast(place, module, dtype)(x.to(place.device)).cpu()
    assert_as_exact_as_torch(y, same_dtype(module, x, dtype), same_dtype(module, x, torch.float64))
    return y


def check_residual_units(place, stage, x, dtype, forced=None):
    """Gated units, from :func:`stage_parts.make_stage`."""
    fast, moved = make_fast(place, residual_units(stage), dtype), None if forced is None else forced.to(place.device)
    y, taken, scores = (t.cpu() for t in fast(x.to(place.device), 0.5, moved))
    exact, exact_scores = run_reference(copy.deepcopy(stage).double(), x.double(), forced=taken)
    same, _ = run_reference(copy.deepcopy(stage).to(dtype), x.to(dtype), forced=taken)
    assert_as_exact_as_torch(y, same, exact)
    assert torch.equal(fast.last_macs.cpu(), count_macs(fast.runner.graph.resized(*x.shape[2:]), taken))
    if forced is None:
        assert_gates_agree(taken, scores, exact_scores, 0.5)
    else:
        assert torch.equal(taken, forced)


def check_chosen_conv2d(place, name, dtype):
    parts, relu, chosen = make_selected(name)
    x, forced = images(3, 10, 11, 9), masks(3, 30, 0.5)
    fast = make_fast(place, chosen, dtype)
    y = fast(x.to(place.device), forced=forced.to(place.device)).cpu()
    filters, channels = forced.split([20, 10], 1)
    same = run_selected(copy.deepcopy(parts).to(dtype), relu, x.to(dtype), filters, channels)
    exact = run_selected(copy.deepcopy(parts).double(), relu, x.double(), filters, channels)
    assert_as_exact_as_torch(y, same, exact)
    assert torch.equal(fast.last_macs.cpu(), count_macs(fast.runner.graph.resized(11, 9), forced))


def check_inputs_of_the_kernels_type(place):
    fast = make_fast(place, make_block(**BLOCKS["one-layer"]), torch.float16)
    x = images(2, 5, 6, 6).half().to(place.device)
    y, _, _ = fast(x)
    assert y.dtype == torch.float16
    assert torch.equal(y, fast(x.float())[0].half())


def check_nan_stays_nan(place):
    x = images(1, 8, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    fast = make_fast(place, make_block(channels=8, layers=1), torch.float16)
    y, taken, scores = fast(x.to(place.device))
    assert taken.item() == 0 and scores.isnan().all(), "a NaN score exceeds no threshold"
    y, _, _ = fast(x.to(place.device), 0.5, torch.ones(1, 1, dtype=torch.uint8, device=place.device))
    assert y[0, 8:].isnan().any()


def accelerate(place, model, dtype=torch.float32, **options):
    return dsn_kernels.accelerate(model, dtype=dtype, backend=place.backend, device=place.device, **options)


def check_network(place, model, fast, x, dtype, forced=None):
    return checks.check_network(model, fast, x, dtype, forced, place.device)


def check_thresholds(place, model):
    """Of a dual network."""
    fast, x = accelerate(place, model), make_images(model, 3)
    for thresholds in (0.0, 1.0, {"coarse": 0.8, "fine": 0.2}):
        fast(x.to(place.device), thresholds=thresholds)
        model(x, thresholds=thresholds)
        assert all(torch.equal(fast.last_gates[name].cpu(), gates) for name, gates in model.last_gates.items())


def check_empty_batch(place, model):
    fast, whole = accelerate(place, model), make_images(model, 2)
    shapes = [logits.shape[1:] for logits in model(whole)]
    assert [logits.shape for logits in fast(whole[:0].to(place.device))] == [(0, *shape) for shape in shapes]


def check_samples_alone(place, model, batch):
    """A sample's result does not depend on its batch, to the last bit."""
    fast, x = accelerate(place, model, torch.float16), make_images(model, batch).to(place.device)

    def joined(images):
        logits = fast(images)
        return logits if torch.is_tensor(logits) else torch.cat(logits, 1)

    whole = joined(x)
    for i in range(batch):
        assert torch.equal(joined(x[i : i + 1]), whole[i : i + 1])


def check_padding(place, model):
    """The samples beyond ``count`` are neither read nor run: their MACs are 0."""
    fast, x = accelerate(place, model, torch.float16), make_images(model, 4).to(place.device)
    limits, count = fast.thresholds, torch.tensor([2], dtype=torch.int32, device=place.device)
    out, alone = fast.runner(x, limits, None, count), fast.runner(x[:2], limits)
    assert torch.equal(out.logits[:2], alone.logits) and torch.equal(out.gates[:2], alone.gates)
    assert out.macs[:2].tolist() == alone.macs.tolist() and out.macs[2:].tolist() == [0, 0]


def check_users_own_network(place):
    model = randomise(UsersNetwork())
    fast = accelerate(place, model)
    assert fast.swapped == ["block", "transition", "head"]
    x = torch.randn(3, 3, 8, 8)
    logits, taken = fast(x.to(place.device))
    expected, expected_taken = model(x)
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(taken.cpu(), expected_taken)
