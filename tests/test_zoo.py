"""Every name of the zoo, accelerated: same outputs as the reference in float64, and the work that its gates select."""

import pytest
import torch

import dsn_kernels
import dsn_models
from tests.checks import check_network
from tests.networks import ZOO, make_images, random_gates, randomise, smaller


@pytest.mark.parametrize("config, family", [pytest.param(c, f, id=c.name) for c, f in ZOO])
def test_equals_the_reference_and_counts_what_it_does(config, family):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(config.name, **smaller(config, family)))
    for module in model.modules():
        if hasattr(module, "path"):  # begins at zero
            torch.nn.init.normal_(module.path.weight)
    fast, images = dsn_kernels.accelerate(model), make_images(model, 2)
    assert isinstance(fast, dsn_kernels.Accelerated)
    check_network(model, fast, images)
    for density in (0.0, 0.5, 1.0) if fast.layers else ():
        check_network(model, fast, images, forced=random_gates(fast, 2, density))
