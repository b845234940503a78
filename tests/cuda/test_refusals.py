"""What models for a GPU refuse, in one line each; tests/cuda/test_graphs.py has what only a device can refuse."""

import pytest
import torch
from references import make_block

import dsn_models
from dsn_kernels import Accelerated, Part, Target
from dsn_models.errors import UserError
from tests.networks import SMALL, make_images, randomise

BRANCHES = ("coarse", "fine")


@pytest.fixture(scope="module")
def fast(runner_module):
    torch.manual_seed(0)
    model = randomise(dsn_models.create("concat-bc-100", **SMALL["concat-bc-100"]))
    return Accelerated(model, Target("simt", torch.float16))


def gates(fast, batch, **values):
    return {
        n: torch.full((batch, fast.layers[n]), values.get(n, 1), dtype=torch.uint8, device=values.get("device", "cpu"))
        for n in BRANCHES
    }


def refused(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forced_gates": {"fine": 2}}, r"forced_gates\['fine'\] holds 2; expected only 0 and 1"),
        ({"forced_gates": {"device": "meta"}}, r"forced_gates\['coarse'\] is on meta; expected cpu: move it"),
        ({"thresholds": 1.5}, "threshold .* 1.5"),
        ({"thresholds": {"coarse": -0.1, "fine": 0.5}}, "threshold .* -0.1"),
        ({"thresholds": float("nan")}, "threshold .* nan"),
    ],
)
def test_gates_and_thresholds(fast, arguments, message):
    given = dict(arguments)
    if "forced_gates" in given:
        given["forced_gates"] = gates(fast, 2, **given["forced_gates"])
    refused(lambda: fast(make_images(fast, 2), **given), message)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.empty(2, 3, 8, 8, device="meta"), "images are on meta; expected cpu: move them or the model"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16), "bfloat16"),
        (torch.zeros(2, 3, 8, 9), r"\[2, 3, 8, 9\]"),
    ],
)
def test_images(fast, images, message):
    refused(lambda: fast(images), message)


def test_a_block_of_its_own(runner_module):
    block = Part(make_block(24, 1), Target("simt", torch.float16))
    x = torch.zeros(2, 24, 4, 4)
    refused(lambda: block(x, 1.5), r"threshold is 1.5; expected a number in \[0, 1\]")
    refused(lambda: block(x, float("nan")), "threshold is nan")
    forced = torch.full((2, 1), 3, dtype=torch.uint8)
    refused(lambda: block(x, 0.5, forced), "forced gates hold 3")


def test_a_model_that_left_the_gpu():
    """Moved to the CPU, or given tensors there: the operator would say that it has no CPU kernel, at length."""
    model = randomise(dsn_models.create("concat-bc-100", **SMALL["concat-bc-100"]))
    fast = Accelerated(model, Target("cuda", torch.float16))
    refused(lambda: fast(make_images(fast, 2)), "images are on cpu, the weights on cpu; expected one GPU")


def test_a_device_that_the_build_does_not_serve(runner_module):
    """Of a device that is only named here: which code there is for it is what the CUDA runtime says elsewhere."""
    refuse, (single, half, bfloat16) = runner_module.refuse_device, range(3)
    assert refuse(1, 90, True, bfloat16) == refuse(0, 75, True, half) == refuse(0, 75, True, single) == ""
    no_code = "device 1 is sm_103, which this build has no code for; dsn info lists what it has"
    assert refuse(1, 103, False, half) == no_code + ", TORCH_CUDA_ARCH_LIST chooses"
    assert refuse(0, 75, True, bfloat16) == "device 0 is sm_75; bfloat16 needs sm_80 or later: choose torch.float16"


def test_memory_and_tensors_of_another_device(runner_module):
    """What a GPU's operators say; tests/cuda/test_graphs.py has them said."""
    memory = runner_module.no_memory(0, "the 9 MiB that a batch of 3 works in")
    assert memory == "out of memory on cuda:0 for the 9 MiB that a batch of 3 works in; use smaller batches"
    place = runner_module.refuse_place
    assert place("weights", 1, 1) == ""
    assert place("weights", -1, 0) == "weights is not on a GPU, but the image is; move both to one device"
    assert place("count", 1, 0) == "count is on cuda:1, the image on cuda:0; move both to one device"
