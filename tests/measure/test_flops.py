"""MACs: the accelerated model's formula against torch's counter, and what a batch executed."""

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_kernels.measure import flops
from dsn_kernels.measure.flops import count_dense
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.networks import executed_macs, run
from dsn_models import UserError
from tests.networks import own_network


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


@pytest.mark.long
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


FAMILIES = [
    small("dsn-navon", image_size=16),
    small("concat-bc-100", block_layers=(2, 3, 2)),
    small("add-166", block_layers=(2, 2, 2)),
    small("dsn-121", block_layers=(1, 2, 1, 1), image_size=64),
    small("skipnet-38-rnn", stage_units=(2, 2, 2)),
    small("skipnet-38-ff", stage_units=(2, 2, 2)),
    small("skipnet-50-rnn-imagenet", stage_units=(1, 1, 2, 1), image_size=64),
    small("resnet-20"),
    small("gaternet-resnet-20"),
    small("gunn-15", widths=(24, 30, 36), segments=(4, 5, 6)),
]


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.config.name)
def test_the_count_is_that_of_the_kernels_layer_by_layer_at_every_density(model):
    fast = dsn_kernels.accelerate(model)
    config = model.config
    images = torch.randn(2, config.in_channels, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(0)
    assert fast.dense_macs == count_dense(model)
    for density in (1.0, 0.5, 0.0) if fast.layers else (1.0,):
        gates = GateSetting(f"random:{1 - density}").draw(config, fast.layers, 2, generator) if fast.layers else None
        run(fast, images, gates)
        count = flops(fast)
        assert torch.equal(count.executed, fast.last_macs)
        assert torch.equal(torch.stack([layer.executed for layer in count.layers]).sum(0), count.executed)
        assert sum(layer.dense for layer in count.layers) == count.dense
        if density == 1.0:
            assert count.skipped_only.tolist() == [count.dense] * 2
        else:
            assert (count.skipped_only < count.dense).all()
        names = [layer.name for layer in count.layers]
        assert len(set(names)) == len(names)


def test_papers_count_whole_layers():
    model = small("concat-bc-100", block_layers=(1, 1, 1))
    fast = dsn_kernels.accelerate(model)
    gates = {name: torch.tensor([[1, 0, 1]], dtype=torch.uint8) for name in ("coarse", "fine")}
    fast(torch.randn(1, 3, 32, 32), forced_gates=gates)
    layer = model.coarse.blocks[1].layers[0]
    skipped = 2 * 16 * 16 * sum(conv.weight.numel() for conv in layer.modules() if isinstance(conv, torch.nn.Conv2d))
    count = flops(fast)
    assert count.skipped_only.item() == count.dense - skipped
    assert {layer.name for layer in count.layers if not layer.ran.all()} == {"coarse.layer.1", "fine.layer.1"}


def test_partly_replaced_network_is_counted_by_torch():
    model = own_network("lsn-navon", image_size=16, block_layers=(1, 1))
    fast = dsn_kernels.accelerate(model)
    assert fast.swapped
    gates = {name: torch.zeros(2, 2, dtype=torch.uint8) for name in ("coarse", "fine")}
    images = torch.rand(2, 1, 16, 16)
    shut = executed_macs(fast, images, gates)
    opened = executed_macs(fast, images, {name: 1 - taken for name, taken in gates.items()})
    assert (0 < shut).all() and (shut < opened).all()
    count = flops(fast, images)
    assert (shut <= count.executed).all() and (count.executed <= opened).all() and count.dense == opened[0].item()


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
