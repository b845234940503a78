"""What surrounds a call: gradients, threads, forks, element types, copies."""

import concurrent.futures
import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import dsn_kernels
import dsn_models
from dsn_models.errors import UserError
from dsn_models.resnet import BasicUnit
from tests.networks import SMALL, make_images, randomise

FAMILIES = ["concat-bc-100", "dsn-121", "skipnet-38-rnn", "gaternet-resnet-20", "gunn-15", "lenet"]


def make(name):
    torch.manual_seed(0)
    return randomise(dsn_models.create(name, **SMALL[name]))


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_that_want_gradients_are_refused(name):
    model = make(name)
    fast, x = dsn_kernels.accelerate(model), make_images(model, 2).requires_grad_()
    with pytest.raises(UserError, match="an input requires gradients and the kernels are for inference") as refusal:
        fast(x)
    assert "\n" not in str(refusal.value)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            fast(x)
    copy.deepcopy(fast)


def test_a_layer_in_front_learns_nothing_without_a_word():
    front = nn.Conv2d(3, 8, 1)
    fast = dsn_kernels.accelerate(nn.Sequential(front, BasicUnit(8, 8, 1), dsn_models.densenet.Head(8, 2)))
    x = torch.randn(2, 3, 9, 9)
    assert not fast(x).requires_grad
    fast[0].requires_grad_()
    with pytest.raises(UserError, match="an input requires gradients"):
        fast(x)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_in_memory_or_through_pickle_computes_the_same(name):
    model = make(name)
    fast, x = dsn_kernels.accelerate(model), make_images(model, 2)
    expected = fast.run(x)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        torch.testing.assert_close(other.run(x), expected, rtol=0, atol=0)


@pytest.mark.long
def test_another_process_loads_what_was_saved(tmp_path, subprocess_python):
    model = make("concat-bc-100")
    fast, x = dsn_kernels.accelerate(model), make_images(model, 2)
    torch.save({"fast": fast, "x": x, "expected": fast(x)}, tmp_path / "fast.pt")
    subprocess_python(
        f"""
        import torch
        saved = torch.load({str(tmp_path / "fast.pt")!r}, weights_only=False)
        print(all(torch.equal(a, b) for a, b in zip(saved["fast"](saved["x"]), saved["expected"])))
        """,
        expect="True",
    )


@pytest.mark.parametrize("name", ["concat-bc-100", "gaternet-resnet-20"])
def test_what_another_build_saved_is_refused(name):
    fast = dsn_kernels.accelerate(make(name))
    state = fast.state_dict()
    assert list(copy.deepcopy(state)) == list(state) and fast.load_state_dict(state)
    state["runner._extra_state"] = {"format": 7}
    with pytest.raises(UserError, match="the state is of plans of format 7; this build reads .* accelerate the model"):
        fast.load_state_dict(state)
    state["runner._extra_state"] = fast.runner.get_extra_state() | {"plan": 7}
    with pytest.raises(UserError, match="the state is of another network, or packed for another machine"):
        fast.load_state_dict(state)
    words = fast.runner.own.words
    words[0] = 7
    with pytest.raises(UserError, match="the state is of plans of format 7"):
        pickle.loads(pickle.dumps(fast))


@pytest.mark.parametrize("make_fast", [lambda: make("skipnet-38-rnn"), lambda: BasicUnit(8, 8, 1)])
def test_packed_weights_take_no_other_type(make_fast):
    fast = dsn_kernels.accelerate(make_fast())
    for convert in (lambda: fast.half(), lambda: fast.to(torch.bfloat16), lambda: fast.double()):
        with pytest.raises(UserError, match=r"packed for torch.float32, not .*accelerate\(model, dtype=torch"):
            convert()
    assert fast.to("cpu") is fast and fast.float() is fast and not fast.train().training


@pytest.mark.parametrize("name", ["concat-bc-100", "gaternet-resnet-20"])
def test_concurrent_calls_tell_what_each_of_them_did(name):
    model = make(name)
    fast = dsn_kernels.accelerate(model)
    batches = [make_images(model, n) + n for n in range(1, 9)]
    expected = [fast.run(x) for x in batches]
    before = fast.last_macs
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for result, wanted in zip(pool.map(fast.run, batches), expected, strict=True):
                torch.testing.assert_close(result, wanted, rtol=0, atol=0)
    assert fast.last_macs is before or torch.equal(fast.last_macs, before), "run leaves them alone"


def test_a_run_tells_what_the_call_leaves_behind():
    model = make("concat-bc-100")
    fast, x = dsn_kernels.accelerate(model), make_images(model, 3)
    assert len(fast.last_macs) == 0, "the spot check leaves no trace"
    result = fast.run(x, thresholds=0.3)
    torch.testing.assert_close(result.outputs, fast(x, thresholds=0.3), rtol=0, atol=0)
    torch.testing.assert_close(result.gates, fast.last_gates, rtol=0, atol=0)
    torch.testing.assert_close(result.scores, fast.last_scores, rtol=0, atol=0)
    assert torch.equal(result.macs, fast.last_macs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_another_type_is_computed_in_float32_from_its_own_images(name, dtype):
    model = make(name).to(dtype)
    fast, x = dsn_kernels.accelerate(model), make_images(model, 2).to(dtype)
    result = fast.run(x)
    forced = {"forced_gates": result.gates} if result.gates else {}
    expected = copy.deepcopy(model).double()(x.double(), **forced)
    for a, b in zip(_tuple(result.outputs), _tuple(expected), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fast(x.float()), result.outputs, rtol=0, atol=0)
    with pytest.raises(UserError, match=r"images are uint8; expected \[B, .*\] float32: convert them with"):
        fast(torch.zeros(2, *x.shape[1:], dtype=torch.uint8))


def _tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_whatever_the_default_type_is(name, float64_by_default):
    model = make(name)
    assert next(model.parameters()).dtype == torch.float64
    fast, x = dsn_kernels.accelerate(model), make_images(model, 2, torch.float64)
    assert fast.run(x).macs.dtype == torch.int64
    torch.testing.assert_close(_tuple(fast(x.float()))[0], _tuple(fast(x))[0], rtol=0, atol=0)


@pytest.mark.usefixtures("float64_by_default")
def test_parts_whatever_the_default_type_is():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), BasicUnit(8, 8, 1), dsn_models.densenet.Head(8, 2)).float()
    with torch.inference_mode():
        x = torch.randn(2, 3, 9, 9, dtype=torch.float32)
        torch.testing.assert_close(dsn_kernels.accelerate(model)(x), model.eval()(x), rtol=1e-4, atol=1e-4)


FORK = """
import os, torch, dsn_kernels, dsn_models
torch.set_num_threads(4)
model = dsn_models.create("dsn-121", growth_rate=8, block_layers=(2, 2, 2, 2), image_size=64).eval()
fast, x = dsn_kernels.accelerate(model), torch.randn(9, 3, 64, 64)
expected = fast(x)
child = os.fork()
if child == 0:
    same = all(torch.equal(a, b) for a, b in zip(fast(x), expected))
    os._exit(7 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert torch.get_num_threads() == 4
"""


@pytest.mark.long
def test_a_fork_after_a_threaded_call_computes_the_same():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)
