"""Whole networks through accelerate, on the Triton kernels."""

import copy

import pytest
import torch
from references import assert_as_exact_as_torch, assert_gates_agree, randomise
from small_models import UsersNetwork, make_images, random_gates

import dsn_kernels
import dsn_models

BRANCHES = ("coarse", "fine")
SHAPES = {  # small: each step of a product takes the interpreter milliseconds
    "dsn-navon": {"image_size": 8, "block_layers": (2, 1)},
    "concat-40": {"image_size": 8, "block_layers": (2, 1)},
    "concat-bc-100": {"image_size": 8, "block_layers": (2, 2)},
    "add-166": {"image_size": 8, "block_layers": (2, 2), "growth_rate": 4, "stage_widths": (8, 16)},
    "dsn-121": {"image_size": 32, "block_layers": (1, 2), "growth_rate": 8},
}


def make_model(name, **overrides):
    torch.manual_seed(0)
    return randomise(dsn_models.create(name, **{**SHAPES[name], **overrides}))


def accelerate(place, model, dtype=torch.float32, **options):
    return dsn_kernels.accelerate(model, dtype=dtype, backend=place.backend, device=place.device, **options)


def check(place, model, dtype, forced=None, batch=2):
    x, fast = make_images(model, batch), accelerate(place, model, dtype)
    moved = None if forced is None else {name: gates.to(place.device) for name, gates in forced.items()}
    actual = [y.cpu() for y in fast(x.to(place.device), forced_gates=moved)]
    gates = {name: taken.cpu() for name, taken in fast.last_gates.items()}
    reference = copy.deepcopy(model).double()
    exact = reference(x.double(), forced_gates=gates)
    same = copy.deepcopy(model).to(dtype)(x.to(dtype), forced_gates=gates)
    for a, s, e in zip(actual, same, exact, strict=True):
        assert a.dtype == torch.float32
        assert_as_exact_as_torch(a, s, e)
    if dtype == torch.float32 and forced is None:
        for name in BRANCHES:
            assert_gates_agree(gates[name], fast.last_scores[name].cpu(), reference.last_scores[name], 0.5)
    assert torch.equal(fast.last_macs.cpu(), fast.macs(gates)), "the kernels count what the formula says"
    return fast, actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_reference(place, name, dtype):
    check(place, make_model(name), dtype)


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_forced_gates(place, density):
    model = make_model("concat-bc-100")
    forced = random_gates(dsn_kernels.accelerate(model), 2, density)
    fast, _ = check(place, model, torch.float16, forced)
    assert all(torch.equal(fast.last_gates[n].cpu(), forced[n]) for n in BRANCHES)


def test_thresholds(place):
    model = make_model("concat-bc-100")
    fast, x = accelerate(place, model), make_images(model, 2)
    for thresholds in (0.0, 1.0, {"coarse": 0.8, "fine": 0.2}):
        fast(x.to(place.device), thresholds=thresholds)
        model(x, thresholds=thresholds)
        assert all(torch.equal(fast.last_gates[n].cpu(), model.last_gates[n]) for n in BRANCHES)


def test_empty_batch(place):
    model = make_model("concat-bc-100")
    coarse, fine = accelerate(place, model)(make_images(model, 2)[:0].to(place.device))
    assert coarse.shape == (0, 20) and fine.shape == (0, 100)


@pytest.mark.parametrize("name", ["concat-bc-100", "add-166"])
def test_a_sample_does_not_depend_on_its_batch(place, name):
    model = make_model(name)
    fast, x = accelerate(place, model, torch.float16), make_images(model, 3).to(place.device)
    whole = torch.cat(fast(x), 1)
    assert torch.equal(torch.cat(fast(x[1:2]), 1), whole[1:2])


def test_padding_is_neither_read_nor_run(place):
    """The samples beyond `count` do no work: their MACs are 0."""
    model = make_model("concat-bc-100")
    fast, x = accelerate(place, model, torch.float16), make_images(model, 3).to(place.device)
    limits, count = fast.thresholds, torch.tensor([2], dtype=torch.int32, device=place.device)
    out, alone = fast.runner(x, limits, None, count), fast.runner(x[:2], limits)
    assert torch.equal(out.logits[:2], alone.logits) and torch.equal(out.gates[:2], alone.gates)
    assert out.macs[:2].tolist() == alone.macs.tolist() and out.macs[2].item() == 0


def test_a_users_own_network(place):
    model = randomise(UsersNetwork())
    fast = accelerate(place, model)
    assert fast.swapped == ["block", "transition", "head"]
    x = torch.randn(2, 3, 8, 8)
    logits, taken = fast(x.to(place.device))
    expected, expected_taken = model(x)
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(taken.cpu(), expected_taken)


def test_compiles_without_a_break(place):
    model = make_model("concat-bc-100", block_layers=(1, 1))
    fast, x = accelerate(place, model), make_images(model, 2).to(place.device)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fast(x))
