import concurrent.futures
import copy
import resource

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dsn_kernels
import dsn_models
from dsn_models.errors import UserError
from tests.checks import check_network
from tests.networks import DUAL, SMALL, make_images, make_small, random_gates, randomise
from tests.own_networks import UsersNetwork

BRANCHES = ("coarse", "fine")


def make_pair(name, **overrides):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name, **{**SMALL[name], **overrides}))
    return model, dsn_kernels.accelerate(model)


@pytest.mark.parametrize("name", DUAL)
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_equals_reference(name, batch):
    model, fast = make_pair(name)
    check_network(model, fast, make_images(model, batch))
    assert 0 < torch.cat(list(fast.last_gates.values()), 1).float().mean() < 1, "both kinds of layers are exercised"


@pytest.mark.long
@pytest.mark.parametrize("name", ["dsn-navon", "concat-40", "concat-bc-100", "add-166"])
def test_full_size_equals_reference(name):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name))
    fast = dsn_kernels.accelerate(model)
    check_network(model, fast, make_images(model, 1), forced=random_gates(fast, 1))


@pytest.mark.parametrize("name", DUAL)
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_counted_macs_equal_the_formula(name, density):
    model, fast = make_pair(name)
    fast(make_images(model, 3), forced_gates=random_gates(fast, 3, density))
    assert torch.equal(fast.last_macs, fast.macs(fast.last_gates))


@pytest.mark.parametrize("name", DUAL)
def test_dense_macs_equal_torchs_count(name):
    model, fast = make_pair(name)
    with FlopCounterMode(display=False) as counter:
        model.dense_equivalent()(make_images(model, 1))
    assert counter.get_total_flops() == 2 * fast.dense_macs


def test_flop_counter_sees_what_ran():
    model, fast = make_pair("concat-bc-100")
    with FlopCounterMode(display=False) as counter:
        fast(make_images(model, 2))
    assert counter.get_total_flops() == 2 * int(fast.last_macs.sum())


def test_open_gates_compute_less_than_the_dense_network():
    """Pooling before a transition's 1x1 is all that is saved, and the gates all that is added."""
    model, fast = make_pair("concat-bc-100")
    fast(make_images(model, 1), forced_gates=random_gates(fast, 1, 1.1))
    assert fast.last_macs.item() < fast.dense_macs


def test_thresholds_and_forced_gates():
    model, fast = make_pair("concat-bc-100")
    x = make_images(model, 4)
    for thresholds in (0.0, 1.0, 0.3, {"coarse": 0.8, "fine": 0.2}):
        fast(x, thresholds=thresholds)
        model(x, thresholds=thresholds)
        for branch in BRANCHES:
            assert torch.equal(fast.last_gates[branch], model.last_gates[branch])
    forced = random_gates(fast, 4)
    fast(x, forced_gates=forced)
    assert all(torch.equal(fast.last_gates[b], forced[b]) for b in BRANCHES)


@pytest.mark.parametrize("name", ["dsn-navon", "add-166", "lsn-navon"])
def test_what_gates_normalise_by_is_folded(name):
    model = randomise(dsn_models.create(name, **{**SMALL[name], "gate_norm": True}))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.01, 2)
    fast, images = dsn_kernels.accelerate(model), make_images(model, 4)
    check_network(model, fast, images)
    for block in model.coarse.blocks:
        part = dsn_kernels.accelerate(torch.nn.Sequential(block))
        assert part.swapped == ["0"]


def test_thresholds_of_the_checkpoint():
    model, fast = make_pair("concat-bc-100", thresholds=(0.9, 0.1))
    x = make_images(model, 4)
    fast(x)
    model(x)
    assert all(torch.equal(fast.last_gates[b], model.last_gates[b]) for b in BRANCHES)


@pytest.mark.long
@pytest.mark.parametrize("name", ["concat-bc-100", "dsn-121"])
def test_compile_and_export(name):
    model, fast = make_pair(name)
    x = make_images(model, 2)
    expected = fast(x)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    batch = torch.export.Dim("batch")
    exported = torch.export.export(fast, (x,), dynamic_shapes={"images": {0: batch}}).module()
    for result in (compiled(x), exported(x)):
        torch.testing.assert_close(result, expected)
    assert torch.equal(compiled.last_gates["fine"], fast.last_gates["fine"])
    assert exported(make_images(model, 5))[0].shape[0] == 5


@pytest.mark.long
def test_inductor():
    model, fast = make_pair("concat-bc-100")
    x = make_images(model, 2)
    torch.testing.assert_close(torch.compile(fast, fullgraph=True)(x), fast(x))


def test_threads_give_identical_results():
    model, fast = make_pair("concat-bc-100")
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([fast(make_images(model, batch)) for batch in (1, 2, 3, 4)])
    torch.set_num_threads(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_four_python_threads_at_once():
    model, fast = make_pair("concat-bc-100")
    batches = [make_images(model, n) for n in (1, 2, 3, 4)]
    expected = [fast(x) for x in batches]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for actual, wanted in zip(pool.map(fast, batches), expected, strict=True):
                torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


def test_empty_batch():
    model, fast = make_pair("concat-bc-100")
    coarse, fine = fast(make_images(model, 2)[:0])
    assert coarse.shape == (0, 20) and fine.shape == (0, 100)
    assert fast.last_gates["fine"].shape == (0, fast.layers["fine"]) and fast.last_macs.shape == (0,)


def test_nan_pixels_skip_every_layer_as_in_the_reference():
    model, fast = make_pair("concat-bc-100")
    x = make_images(model, 2)
    x[0, 0, 0, 0] = float("nan")
    actual, expected = fast(x), model(x)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    for branch in BRANCHES:
        assert torch.equal(fast.last_gates[branch], model.last_gates[branch])
        torch.testing.assert_close(fast.last_scores[branch], model.last_scores[branch], equal_nan=True)


def test_state_dict_round_trip(tmp_path):
    model, fast = make_pair("concat-bc-100")
    x = make_images(model, 2)
    torch.save(fast.state_dict(), tmp_path / "fast.pt")
    other = dsn_kernels.accelerate(make_small("concat-bc-100"))
    other.load_state_dict(torch.load(tmp_path / "fast.pt", weights_only=True))
    torch.testing.assert_close(other(x), fast(x), rtol=0, atol=0)


def test_model_is_left_alone():
    model, fast = make_pair("dsn-121")
    before = copy.deepcopy(model.state_dict())
    for parameter in fast.parameters():
        parameter.data.zero_()
    fast.runner.weights.zero_()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_users_own_network():
    model = randomise(UsersNetwork())
    fast = dsn_kernels.accelerate(model)
    assert fast.swapped == ["block", "transition", "head"]
    x = torch.randn(3, 3, 8, 8)
    logits, taken = fast(x)
    expected, expected_taken = model(x)
    torch.testing.assert_close(logits, expected)
    assert torch.equal(taken, expected_taken)


def test_reference_backend_is_the_model():
    model, _ = make_pair("concat-bc-100")
    x = make_images(model, 2)
    torch.testing.assert_close(dsn_kernels.accelerate(model, backend="reference")(x), model(x))


@pytest.mark.long
def test_memory_does_not_grow_with_the_batch():
    """A forward at batch 64 keeps no block of all samples: input, output and one set of buffers per worker."""
    model = randomise(dsn_models.create("concat-bc-100"))
    fast = dsn_kernels.accelerate(model)
    fast(make_images(model, 2))
    x = make_images(model, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fast(x)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * 1024, f"{grown} KiB; the first block's state of the batch alone is 55,296 KiB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tpu"}, "backend is 'tpu'; expected one of auto, cpu, cuda, triton, reference"),
        ({"dtype": torch.float16}, "dtype is torch.float16; the CPU kernels serve torch.float32, torch.bfloat16"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(UserError, match=message):
        dsn_kernels.accelerate(make_small("concat-bc-100"), **arguments)


def test_unsupported_models_are_refused():
    with pytest.raises(UserError, match="Linear without a part that can be accelerated; supported: BasicUnit"):
        dsn_kernels.accelerate(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="model is a str; expected a torch.nn.Module"):
        dsn_kernels.accelerate("concat-bc-100.safetensors")


def test_nan_weights_are_refused():
    model = make_small("concat-bc-100")
    model.fine.head.classifier.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="weights hold NaN or infinity: tensor fine.head.classifier.weight"):
        dsn_kernels.accelerate(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 1, 8, 8)}, r"images have shape \[2, 1, 8, 8\]"),
        ({"images": torch.zeros(3, 8, 8)}, r"images have shape \[3, 8, 8\]"),
        ({"images": torch.zeros(2, 3, 8, 8).half()}, "images are float16"),
        ({"images": torch.zeros(2, 3, 8, 8, device="meta")}, "images are on meta; expected cpu"),
        ({"images": "cat.png"}, "images are a str"),
        ({"thresholds": 1.5}, "threshold of the coarse branch is 1.5; expected a number in"),
        ({"thresholds": {"coarse": 0.5}}, "thresholds has the keys"),
        ({"forced_gates": {"fine": None}}, "forced_gates is"),
        (
            {"forced_gates": {"coarse": torch.zeros(2, 1), "fine": None}},
            r"forced_gates\['coarse'\] is torch.float32 \[2, 1\]",
        ),
    ],
)
def test_bad_calls_name_the_argument(change, message):
    _, fast = make_pair("concat-bc-100")
    arguments = {"images": torch.zeros(2, 3, 8, 8), **change}
    with pytest.raises(UserError, match=message) as error:
        fast(**arguments)
    assert "\n" not in str(error.value)
