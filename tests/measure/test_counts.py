"""Every model of the zoo, accelerated: meter, formula and torch's counter against the kernels' counters."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dsn_kernels
import dsn_models
from dsn_kernels.measure import flops
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.networks import count_dense, executed_macs, run
from tests.networks import ZOO, make_images, own_network, smaller

DENSITIES = (1.0, 0.6, 0.2)


def make(config, family):
    torch.manual_seed(0)
    return dsn_models.create(config.name, **smaller(config, family)).eval()


@pytest.mark.parametrize("config, family", [pytest.param(c, f, id=c.name) for c, f in ZOO])
def test_meter_formula_and_torch_agree_with_the_kernels_at_three_densities(config, family):
    model = make(config, family)
    fast = dsn_kernels.accelerate(model)
    config = model.config
    images = torch.randn(2, config.in_channels, config.image_size, config.image_size)
    generator = torch.Generator().manual_seed(0)
    assert fast.dense_macs == count_dense(model)
    executed = []
    for density in DENSITIES if fast.layers else (1.0,):
        gates = None
        if fast.layers:
            gates = GateSetting(f"random:{1 - density}").draw(config, fast.layers, 2, generator)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            run(fast, images, gates)
        counted = fast.last_macs
        assert counter.get_total_flops() == 2 * counted.sum().item()
        assert torch.equal(fast.macs(gates or {}).expand(2), counted)
        meter = flops(fast)
        assert torch.equal(meter.executed, counted)
        assert torch.equal(torch.stack([layer.executed for layer in meter.layers]).sum(0), counted)
        executed.append(counted.sum().item())
    assert executed == sorted(executed, reverse=True) and executed[0] > executed[-1] * bool(fast.layers)


def test_parts_that_are_served_count_for_torch():
    fast = dsn_kernels.accelerate(own_network("lsn-concat-bc-100"))
    images = make_images(fast, 2)
    each = executed_macs(fast, images)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        fast(images)
    assert fast.swapped and counter.get_total_flops() == 2 * each.sum().item() > 0
