import torch
from small_models import make_small

from dsn_models.data import navon
from dsn_models.dual_skipping import BRANCHES
from dsn_models.gates import PooledGate
from dsn_models.training.calibration import calibrate_gates, recentre_gates


def test_calibrated_gates_begin_half_open_or_open():
    dataset = navon.from_sklearn(True, 32)
    model = make_small("dsn-navon", image_size=64)
    target = (0.75, 0.875)
    calibrate_gates(model, dataset, target)
    images = dataset.batch(torch.arange(32))[0]
    with torch.no_grad():
        model(images)
    for name, fraction in zip(BRANCHES, target, strict=True):
        ran = model.last_gates[name].float().mean(0)  # of each layer, over the images
        gates = [m for m in getattr(model, name).modules() if isinstance(m, PooledGate)]
        half_open = torch.tensor([bool(gate.linear.weight.any()) for gate in gates])
        assert half_open.sum() == round(2 * (1 - fraction) * len(gates))
        assert (ran[~half_open] == 1).all()
        # Calibrated with every layer running; what an earlier gate skips moves the ones behind it.
        first = int(half_open.nonzero()[0])
        assert 0.3 < ran[first] < 0.7
    assert not model.training


@torch.no_grad()
def test_recentred_gates_are_open_for_half_of_the_images_again():
    dataset = navon.from_sklearn(True, 32)
    model = make_small("dsn-navon", image_size=64)
    calibrate_gates(model, dataset, (0.75, 0.75))
    gates = [gate for gate in model.modules() if isinstance(gate, PooledGate)]
    half_open = torch.tensor([bool(gate.linear.weight.any()) for gate in gates])
    for gate in gates:
        if gate.linear.weight.any():
            gate.linear.bias.add_(1.0)  # what drift does
    recentre_gates(model, dataset)
    model(dataset.batch(torch.arange(32))[0])
    ran = torch.cat([model.last_gates[name].float().mean(0) for name in BRANCHES])
    assert half_open.any()
    assert ((ran[half_open] - 0.5).abs() <= 1 / 32).all()
    assert (ran[~half_open] == 1).all()
    assert not model.training
