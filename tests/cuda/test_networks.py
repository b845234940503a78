"""Whole networks through accelerate, on the CUDA kernels."""

import copy

import pytest
import torch
from references import assert_as_exact_as_torch, assert_gates_agree, randomise
from small_models import DUAL, SMALL, UsersNetwork, make_images, random_gates

import dsn_kernels
import dsn_models
from dsn_models.errors import UserError

BRANCHES = ("coarse", "fine")


def make_model(name, **overrides):
    torch.manual_seed(0)
    return randomise(dsn_models.create(name, **{**SMALL[name], **overrides}))


def accelerate(place, model, dtype=torch.float32, **options):
    return dsn_kernels.accelerate(model, dtype=dtype, backend=place.backend, device=place.device, **options)


def check(place, model, fast, x, dtype, forced=None):
    actual = [y.cpu() for y in fast(x.to(place.device), forced_gates=forced)]
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
    assert torch.equal(fast.last_macs.cpu(), fast.macs(gates))
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DUAL)
def test_equals_reference(place, name, dtype):
    place.seeded(2)
    model = make_model(name)
    check(place, model, accelerate(place, model, dtype), make_images(model, 3), dtype)


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_forced_gates(place, density):
    model = make_model("concat-bc-100")
    fast = accelerate(place, model, torch.float16)
    forced = random_gates(fast, 3, density)
    moved = {name: gates.to(place.device) for name, gates in forced.items()}
    actual = fast(make_images(model, 3).to(place.device), forced_gates=moved)
    assert all(torch.equal(fast.last_gates[n].cpu(), forced[n]) for n in BRANCHES)
    same = copy.deepcopy(model).half()(make_images(model, 3).half(), forced_gates=forced)
    exact = copy.deepcopy(model).double()(make_images(model, 3).double(), forced_gates=forced)
    for a, s, e in zip(actual, same, exact, strict=True):
        assert_as_exact_as_torch(a.cpu(), s, e)


def test_thresholds(place):
    model = make_model("concat-bc-100")
    fast, x = accelerate(place, model), make_images(model, 3)
    for thresholds in (0.0, 1.0, {"coarse": 0.8, "fine": 0.2}):
        fast(x.to(place.device), thresholds=thresholds)
        model(x, thresholds=thresholds)
        assert all(torch.equal(fast.last_gates[n].cpu(), model.last_gates[n]) for n in BRANCHES)


def test_empty_batch(place):
    model = make_model("concat-bc-100")
    coarse, fine = accelerate(place, model)(make_images(model, 2)[:0].to(place.device))
    assert coarse.shape == (0, 20) and fine.shape == (0, 100)


def test_a_sample_does_not_depend_on_its_batch(place):
    model = make_model("concat-bc-100")
    fast, x = accelerate(place, model, torch.float16), make_images(model, 5).to(place.device)
    whole = torch.cat(fast(x), 1)
    for i in range(5):
        assert torch.equal(torch.cat(fast(x[i : i + 1]), 1), whole[i : i + 1])


def test_padding_is_neither_read_nor_run(place):
    """The samples beyond `count` do no work: their MACs are 0."""
    model = make_model("concat-bc-100")
    fast, x = accelerate(place, model, torch.float16), make_images(model, 4).to(place.device)
    limits, count = fast.thresholds, torch.tensor([2], dtype=torch.int32, device=place.device)
    out = fast.runner(x, limits, None, count)
    alone = fast.runner(x[:2], limits)
    assert torch.equal(out.logits[:2], alone.logits) and torch.equal(out.gates[:2], alone.gates)
    assert out.macs[:2].tolist() == alone.macs.tolist() and out.macs[2:].tolist() == [0, 0]


def test_a_users_own_network(place):
    model = randomise(UsersNetwork())
    fast = accelerate(place, model)
    assert fast.swapped == ["block", "transition", "head"]
    x = torch.randn(3, 3, 8, 8)
    logits, taken = fast(x.to(place.device))
    expected, expected_taken = model(x)
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(taken.cpu(), expected_taken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "simt", "dtype": torch.float64},
            "the GPU kernels serve torch.float32, torch.float16, torch.bfloat",
        ),
        ({"backend": "simt", "graph": True}, "graph is for a GPU; the device is 'cpu'"),
        ({"backend": "cpu", "device": "cuda"}, "device is 'cuda'; the backend 'cpu' runs on"),
        ({"device": "tpu"}, "device is 'tpu'; expected 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message) as error:
        dsn_kernels.accelerate(make_model("concat-bc-100"), **options)
    assert "\n" not in str(error.value)


def test_no_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="backend 'cuda' (is not in this build|finds no device)"):
        dsn_kernels.accelerate(make_model("concat-bc-100"), device="cuda")
