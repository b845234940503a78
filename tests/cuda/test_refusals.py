"""What GPU twins refuse, in one line each; tests/cuda/test_graphs.py has what only a device can refuse."""

import pytest
import torch
from references import make_block, randomise
from small_models import SMALL, make_images

import dsn_models
from dsn_kernels.nn.gpu import GpuDenseBlock
from dsn_kernels.nn.network import Network, Target
from dsn_models.errors import UserError

BRANCHES = ("coarse", "fine")


@pytest.fixture(scope="module")
def fast(runner_module):
    torch.manual_seed(0)
    model = randomise(dsn_models.create("concat-bc-100", **SMALL["concat-bc-100"]))
    return Network(model, Target("simt", torch.float16))


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
        ({"forced_gates": {"fine": 2}}, r"forced gates hold 2; expected 0 \(skip\) and 1 \(run\) only"),
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
    block = GpuDenseBlock(make_block(24, 1), torch.float16, "simt")
    x = torch.zeros(2, 24, 4, 4)
    refused(lambda: block(x, 1.5), r"threshold is 1.5; expected a number in \[0, 1\]")
    refused(lambda: block(x, float("nan")), "threshold is nan")
    forced = torch.full((2, 1), 3, dtype=torch.uint8)
    refused(lambda: block(x, 0.5, forced), "forced gates hold 3")


def test_a_twin_that_left_the_gpu():
    """Moved to the CPU, or given tensors there: the operator would say that it has no CPU kernel, at length."""
    model = randomise(dsn_models.create("concat-bc-100", **SMALL["concat-bc-100"]))
    twin = Network(model, Target("cuda", torch.float16))
    refused(lambda: twin(make_images(twin, 2)), "images are on cpu, the weights on cpu; expected one GPU")
