"""MACs: the accelerated model's formula against torch's counter, and what a batch executed."""

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_kernels.measure import flops
from dsn_kernels.measure.flops import count_dense
from dsn_models import UserError


def small(name, **options):
    torch.manual_seed(0)
    return dsn_models.create(name, **options).eval()


@pytest.mark.parametrize(
    "model",
    [
        small("dsn-navon"),
        small("concat-40", block_layers=(2, 2, 2)),
        small("concat-bc-100", block_layers=(2, 3, 2)),
        small("add-166", block_layers=(2, 2, 2)),
        small("dsn-121", block_layers=(2, 2, 2, 2), image_size=64),
    ],
    ids=lambda model: model.config.name,
)
def test_dense_macs_are_those_that_torch_counts(model):
    assert dsn_kernels.accelerate(model).dense_macs == count_dense(model)


def test_concat_bc_100_as_published():
    assert count_dense(dsn_models.create("concat-bc-100")) == 588_362_832


def test_accelerated_model_executes_what_its_gates_let_run():
    model = small("dsn-navon", image_size=16)
    fast = dsn_kernels.accelerate(model)
    images = torch.rand(5, 1, 16, 16)
    count = flops(fast, images)
    assert count.dense == fast.dense_macs
    assert torch.equal(count.executed, fast.macs(fast.last_gates))
    assert count.executed.dtype == torch.int64 and count.executed.shape == (5,)
    assert count.saved == pytest.approx(1 - count.executed.double().mean().item() / count.dense)
    assert count.gates == {name: gates.double().mean().item() for name, gates in fast.last_gates.items()}


def test_without_images_the_last_batch_is_counted():
    fast = dsn_kernels.accelerate(small("dsn-navon", image_size=16))
    shut = {name: torch.zeros(3, 12, dtype=torch.uint8) for name in ("coarse", "fine")}
    fast(torch.rand(3, 1, 16, 16), forced_gates=shut)
    count = flops(fast)
    assert count.gates == {"coarse": 0.0, "fine": 0.0}
    assert torch.equal(count.executed, fast.macs(shut))


def test_reference_model_executes_every_layer():
    model = small("dsn-navon", image_size=16)
    count = flops(model, torch.rand(2, 1, 16, 16))
    assert count.executed.tolist() == [count.dense] * 2
    assert count.saved == 0.0
    assert set(count.gates) == {"coarse", "fine"}


def test_baseline_has_no_gates():
    count = flops(small("lenet"), torch.rand(2, 1, *[small("lenet").config.image_size] * 2))
    assert count.gates == {} and count.executed.tolist() == [count.dense] * 2


def test_counting_leaves_the_mode_of_the_model():
    model = dsn_models.create("dsn-navon", image_size=16).train()
    count_dense(model)
    assert model.training


@pytest.mark.parametrize("images", [None, torch.rand(0, 1, 16, 16)])
def test_nothing_to_count(images):
    with pytest.raises(UserError, match="expected"):
        flops(small("dsn-navon", image_size=16), images)
