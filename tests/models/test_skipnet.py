"""SkipNet against its formula, written out on one image at a time by released_skipnet.py."""

import pytest
import torch
from released_skipnet import make_released
from torch import nn

import dsn_models
from dsn_models import UserError
from dsn_models.computation import computation, unit_macs
from dsn_models.convert import names, transfer
from dsn_models.skipnet import UNITS

SMALL = {"stage_units": (2, 2, 2), "stage_widths": (8, 16, 16), "stem_width": 8, "image_size": 16}
IMAGENET = {"stage_units": (2, 2), "stage_widths": (16, 32), "stem_width": 8, "image_size": 32, "classes": 7}
CASES = {
    "skipnet-38-rnn": SMALL,
    "skipnet-38-ff": SMALL,
    "skipnet-110-ff": SMALL,
    "skipnet-18-rnn-imagenet": IMAGENET,
    "skipnet-50-rnn-imagenet": IMAGENET,
}


def pair(name, seed=0):
    """A SkipNet of ours and the authors', of the same weights, float64, in ``eval()``."""
    model = dsn_models.create(name, **CASES[name]).double().eval()
    released = make_released(model.config, seed)
    state = {k: v for k, v in released.state_dict().items() if "num_batches" not in k}
    transfer(model, state, names.released_skipnet(model.config), name)
    return model, released


def images_of(model, batch, seed=1):
    size = model.config.image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_eval_is_the_formula(name):
    taken = []
    for seed in range(3):
        model, released = pair(name, seed)
        images = images_of(model, 6)
        expected, gates = released(images)
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(model.last_gates[UNITS], gates.to(torch.uint8))
        assert model.last_scores[UNITS].shape == gates.shape
        taken.append(gates)
    assert 0 < torch.cat(taken).double().mean() < 1


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_forced_gates(name):
    model, released = pair(name)
    images = images_of(model, 5)
    length = model.gate_counts[UNITS]
    forced = torch.randint(0, 2, (5, length), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    forced[0], forced[1] = 0, 1
    torch.testing.assert_close(model(images, {UNITS: forced}), released(images, forced)[0], rtol=1e-9, atol=1e-9)
    assert torch.equal(model.last_gates[UNITS], forced)
    dense = model.dense_equivalent()(images[1:2])
    torch.testing.assert_close(model(images[1:2], {UNITS: forced[1:2]}), dense, rtol=0, atol=0)


@torch.no_grad()
def test_a_bypassed_entry_unit_passes_its_shortcut_without_relu():
    model, _ = pair("skipnet-38-rnn")
    images = images_of(model, 2)
    x = model.units[0](model.stem(images))
    for unit in list(model.units)[1:]:
        x = unit.shortcut(x)
    assert (x < 0).any()
    forced = {UNITS: torch.zeros(2, 5, dtype=torch.uint8)}
    torch.testing.assert_close(model(images, forced), model.head(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["skipnet-38-rnn", "skipnet-38-ff"])
@torch.no_grad()
def test_images_do_not_see_each_other(name):
    model, _ = pair(name)
    images = images_of(model, 5)
    together = model(images)
    torch.testing.assert_close(model(images[3:4]), together[3:4], rtol=1e-9, atol=1e-9)
    assert model(images[:0]).shape == (0, model.config.classes)
    assert model.last_gates[UNITS].shape == (0, 5)


@torch.no_grad()
def test_thresholds():
    model, _ = pair("skipnet-38-rnn")
    images = images_of(model, 4)
    model(images, thresholds=0.0)
    assert model.last_gates[UNITS].all()
    model(images, thresholds={UNITS: 1.0})
    assert not model.last_gates[UNITS].any()


@torch.no_grad()
def test_a_threshold_for_each_gate():
    limits = (0.0, 1.0, 0.0, 1.0, 0.0)
    model = dsn_models.create("skipnet-38-rnn", **SMALL, layer_thresholds=limits).eval()
    model(images_of(model, 3).float())
    assert model.last_gates[UNITS].tolist() == [[1, 0, 1, 0, 1]] * 3
    model(images_of(model, 3).float(), thresholds=1.0)
    assert not model.last_gates[UNITS].any()


@pytest.mark.parametrize("name", ["skipnet-38-rnn", "skipnet-38-ff"])
def test_training_decides_alike_and_teaches_the_gates(name):
    model, _ = pair(name)
    images = images_of(model, 4)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    logits = model(images)
    loss = logits.square().sum()
    loss.backward()
    untaught = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert untaught and all(key.startswith("gates.5.") for key in untaught)
    assert all(p.grad.abs().sum() > 0 for key, p in model.named_parameters() if "control" in key or "gates.0" in key)
    gates = model.last_gates
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits.detach(), rtol=1e-9, atol=1e-9)
    assert torch.equal(model.last_gates[UNITS], gates[UNITS])


def test_the_gradient_of_a_gate_is_that_of_the_mixture():
    """d loss / d score of the last gate, by finite differences of g in x = g kept + (1 - g) shortcut."""
    model, _ = pair("skipnet-38-rnn")
    images = images_of(model, 1)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    value = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    calls = []

    def decide(score):
        calls.append(score)
        return value.expand(1) if len(calls) == 5 else torch.ones_like(score)

    def loss():
        calls.clear()
        return model(images, decide=decide).square().sum()

    (gradient,) = torch.autograd.grad(loss(), value)
    with torch.no_grad():
        x = {g: float(mixture(model, images, g).square().sum()) for g in (0.3 - 1e-5, 0.3 + 1e-5)}
    assert gradient.item() == pytest.approx((x[0.3 + 1e-5] - x[0.3 - 1e-5]) / 2e-5, rel=1e-6)


def mixture(model, images, g):
    x = model.stem(images)
    for unit in list(model.units)[:-1]:
        x = unit(x)
    last = model.units[-1]
    return model.head(g * last(x) + (1 - g) * last.shortcut(x))


@pytest.mark.parametrize("name", CASES)
def test_checkpoint_round_trip(name, tmp_path):
    model = dsn_models.create(name, **CASES[name]).eval()
    again = dsn_models.load(dsn_models.save(model, tmp_path / "m.safetensors"))
    images = images_of(model, 2).float()
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    assert again.config == model.config


def test_backbone():
    backbone = dsn_models.create("resnet-32", stage_units=(2, 2, 2), image_size=16)
    model = dsn_models.create("skipnet-32-rnn", stage_units=(2, 2, 2), image_size=16)
    model.load_backbone(backbone)
    model.open_gates()
    backbone.eval(), model.eval()
    images = images_of(model, 3).float()
    with torch.no_grad():
        torch.testing.assert_close(model(images), backbone(images), rtol=0, atol=0)
    assert model.last_gates[UNITS].all()
    projected = dsn_models.create("skipnet-38-rnn", stage_units=(2, 2, 2), image_size=16)
    with pytest.raises(UserError, match="backbone resnet-32 has shortcut pad; skipnet-38-rnn needs projection"):
        projected.load_backbone(backbone)


@pytest.mark.parametrize("name", CASES)
def test_macs_by_hand(name):
    model = dsn_models.create(name, **CASES[name])
    counts = unit_macs(model)
    shapes = {}
    handles = [
        m.register_forward_hook(lambda m, _, out, key=key: shapes.__setitem__(key, (m, out.shape)))
        for key, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    model.eval()(images_of(model, 1).float())
    for handle in handles:
        handle.remove()
    macs = {
        key: m.weight.numel() * (shape[2] * shape[3] if len(shape) == 4 else 1) for key, (m, shape) in shapes.items()
    }
    dense = sum(n for key, n in macs.items() if not key.startswith(("gates", "control")))
    assert counts.dense == dense
    for gate in range(model.gate_counts[UNITS]):
        unit = f"units.{gate + 1}."
        assert counts.residuals[gate] == sum(n for k, n in macs.items() if k.startswith(unit) and "shortcut" not in k)
        own = sum(n for k, n in macs.items() if k.startswith(f"gates.{gate}." if "ff" in name else f"gates.{gate}"))
        assert counts.gates[gate] == own + (0 if "ff" in name else 10 * 40 * 2 + 10)
    kept = torch.zeros(2, model.gate_counts[UNITS], dtype=torch.uint8)
    kept[1] = 1
    cost = computation(model, kept)
    assert cost.units.tolist() == [1 / len(model.units), 1.0]
    assert (cost.macs[1] - cost.macs[0]).item() == counts.residuals.sum().item()
    assert cost.macs[1].item() == dense + counts.gates.sum().item()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dsn_models.create("skipnet-38-rnn", gate="lstm"), "gate is 'lstm'; expected one of rnn, ff-1, ff-2"),
        (lambda: dsn_models.create("skipnet-38-rnn", threshold=2), "threshold is 2; expected a number in"),
        (lambda: dsn_models.create("skipnet-38-rnn", layer_thresholds=[0.5]), "has 1 numbers; expected 17"),
        (lambda: dsn_models.create("skipnet-38-rnn", layer_thresholds=[2.0] * 17), "threshold is 2.0; expected"),
        (lambda: dsn_models.create("skipnet-38-rnn", stage_units=(1,), stage_widths=(16,)), "the first is never gated"),
        (lambda: dsn_models.create("skipnet-38-rnn", unit="wide"), "unit is 'wide'; expected one of basic"),
    ],
)
def test_configurations_that_do_not_fit(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_calls_that_do_not_fit():
    model = dsn_models.create("skipnet-38-rnn", **SMALL).eval()
    images = images_of(model, 2).float()
    with pytest.raises(UserError, match=r"forced_gates has the keys \['coarse'\]; expected 'units'"):
        model(images, {"coarse": torch.ones(2, 5, dtype=torch.uint8)})
    with pytest.raises(UserError, match=r"forced_gates\['units'\] is torch.uint8 \[2, 6\]; expected .* \[2, 5\]"):
        model(images, {UNITS: torch.ones(2, 6, dtype=torch.uint8)})
    with pytest.raises(UserError, match="threshold is -1; expected a number in"):
        model(images, thresholds=-1)
    with pytest.raises(UserError, match=r"thresholds has the keys \['fine'\]; expected 'units'"):
        model(images, thresholds={"fine": 0.5})
    with pytest.raises(UserError, match="images have shape"):
        model(images[:, :, :8])
