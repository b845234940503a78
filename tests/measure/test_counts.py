"""Every model of the zoo, accelerated: meter, formula and torch's counter against the kernels' counters."""

import pytest
import torch
from small_models import make_images, own_network
from torch.utils.flop_counter import FlopCounterMode

import dsn_kernels
import dsn_models
from dsn_kernels.measure import flops
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.networks import count_dense, executed_macs, run
from dsn_models import zoo

DENSITIES = (1.0, 0.6, 0.2)
_GATER = {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "stem": "conv3x3"}
_GATERNETS = {  # by backbone family
    "resnet": {"stage_units": (1, 1), "stage_widths": (16, 32), "stem_width": 8, "stem": "conv3x3"},
    "densenet": {"block_layers": (2, 2, 2)},
    "shake": {"stage_units": (1, 1, 1), "width": 8, "stem_width": 8},
    "inception": {"blocks": (1, 1, 1)},
}
ZOO = [(config, family) for family, parts in zoo.FAMILIES.items() for config, _ in parts.zoo]


def smaller(config, family):
    """Options that keep what kind of network it is: its unit, stem, gates and merge, with few and narrow stages."""
    if family == "gaternet":
        backbone = next(options for kind, options in _GATERNETS.items() if f"-{kind}" in config.name)
        size = 75 if "inception" in config.name else 16
        return {"image_size": size, "backbone_options": backbone, "gater_options": _GATER}
    if family == "gradually_updated":
        return {"widths": (8, 12), "segments": (4, (1, 5, 6)), "image_size": 32 if config.stem == "imagenet" else 8}
    if family == "inception":
        return {"blocks": (1, 1, 1), "image_size": 75}
    if family == "shake_shake":
        return {"stage_units": (1, 1, 1), "width": 8, "image_size": 16}
    if family in ("resnet", "skipnet"):
        units = (2,) + (1,) * (len(config.stage_units) - 1)
        widths = tuple(width // 4 for width in config.stage_widths)
        size = 64 if config.stem == "imagenet" else 16
        return {
            "stage_units": units, "stage_widths": widths, "stem_width": config.stem_width // 4, "image_size": size
        }  # fmt: skip
    if family == "lenet":
        return {}
    layers = tuple(min(2, count) for count in config.block_layers)
    return {"block_layers": layers, "image_size": 64 if getattr(config, "stem", "") == "imagenet" else 16}


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
