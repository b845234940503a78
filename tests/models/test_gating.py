"""Networks that were made to skip: which units are found, what a gate does to them, and that they train and export."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dsn_models import UserError, gate, gate_filters
from dsn_models.computation import gate_macs
from dsn_models.gated import GatedUnit, make_gate
from dsn_models.gates import set_noise
from dsn_models.macs import count_macs
from dsn_models.selection import set_compute
from dsn_models.training import Recipe
from dsn_models.training.evaluation import all_open
from dsn_models.training.policy import Policy
from tests.interop import make_foreign

KINDS = ["pooled", "mlp", "recurrent"]


class SqueezeExcitation(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Unit(nn.Module):
    """Residual where the shape stays; its squeeze-and-excitation keeps the shape, too, and is no unit."""

    def __init__(self, inputs, outputs, activation=F.relu):
        super().__init__()
        self.activation = activation
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.excitation = SqueezeExcitation(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        y = self.excitation(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())))
        return self.activation(self.shortcut(x) + y)


class Preactivated(nn.Module):
    """Works in place on what it is given."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(x.relu_()) + x


class Shuffled(nn.Module):
    """Passes half of its channels on, but elsewhere."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels // 2, channels // 2, 1)

    def forward(self, x):
        kept, taken = x.chunk(2, 1)
        return torch.stack([kept, self.conv(taken)], 2).flatten(1, 2)


class Network(nn.Module):
    """Two stages of units, between layers that keep the shape and are none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.plain = nn.Conv2d(4, 4, 3, padding=1)
        self.stages = nn.ModuleList(
            [nn.Sequential(Unit(4, 4), Unit(4, 4, F.silu)), nn.Sequential(Unit(4, 6), Unit(6, 6))]
        )
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.plain(self.stem(x))
        for stage in self.stages:
            x = F.avg_pool2d(stage(x), 2)
        return self.fc(x.mean((2, 3)))


UNITS = ["stages.0.0", "stages.0.1", "stages.1.1"]


def make_network(of=Network, seed=0):
    torch.manual_seed(seed)
    model = of() if isinstance(of, type) else nn.Sequential(*of)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean), nn.init.normal_(module.bias)
    return model.eval()


def make_images(batch=5, dtype=torch.float32, channels=3):
    """Images of different brightness, which gates on pooled features can tell apart."""
    generator = torch.Generator().manual_seed(1)
    images, brightness = (
        torch.randn(batch, channels, 8, 8, generator=generator),
        torch.randn(batch, generator=generator),
    )
    return (images + 2 * brightness[:, None, None, None]).to(dtype)


def decide_differently(gated, images):
    """Gives the gates random weights, and a threshold in the middle of their scores."""
    torch.manual_seed(0)
    for linear in gated.last_linears():
        nn.init.normal_(linear.weight)
    gated(images)
    for part in gated.gated():
        part.threshold = gated.last_scores["units"].median().item()
    gated(images)
    assert 0 < gated.last_gates["units"].sum() < gated.last_gates["units"].numel()


def some_gates(gated, batch):
    generator = torch.Generator().manual_seed(2)
    draws = {n: torch.randint(0, 2, (batch, k), generator=generator) for n, k in gated.gate_counts.items()}
    return {name: gates.to(torch.uint8) for name, gates in draws.items()}


def names(report):
    return [part.name for part in report.parts]


def test_residual_units_are_found():
    model = make_network()
    gated, report = gate(model, make_images())
    assert names(report) == UNITS
    assert [part.kind for part in report.parts] == ["Unit"] * 3
    expected = [2 * 9 * 4 * 4 * 64 + 16] * 2 + [2 * 9 * 6 * 6 * 16 + 24]
    assert [part.macs for part in report.parts] == expected
    assert report.macs == count_macs(model, SimpleNamespace(in_channels=3, image_size=8))
    assert report.share == pytest.approx(sum(expected) / report.macs)
    assert report.gate_macs == 4 + 4 + 6
    assert type(gated.network) is Network and isinstance(gated.network.stages[0][0], GatedUnit)


def test_the_report_is_a_table():
    lines = str(gate(make_network(), make_images())[1]).splitlines()
    assert lines[0].split() == ["gated", "kind", "gates", "MACs", "share"]
    assert lines[1].split() == ["stages.0.0", "Unit", "1", "18,448", "25.4", "%"]
    assert lines[4].startswith("together") and lines[-1].startswith("the network")
    assert len({len(line) for line in lines[:-1]}) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_open_gates_change_nothing_and_the_model_is_left_alone(kind):
    model, images = make_network(), make_images()
    before = copy.deepcopy(model.state_dict())
    gated, _ = gate(model, images, kind=kind)
    assert torch.equal(gated(images), model(images))
    assert gated.last_gates["units"].dtype == torch.uint8 and gated.last_gates["units"].tolist() == [[1, 1, 1]] * 5
    assert not any(isinstance(module, GatedUnit) for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("compute", ["masked", "selected"])
def test_an_image_gets_the_unit_or_what_went_into_it(training, compute):
    model, images = make_network(), make_images()
    gated, _ = gate(model, images)
    for module in gated.modules():
        module.training = training and not isinstance(module, nn.BatchNorm2d)
    set_compute(gated, compute)
    seen = []
    gated.network.stages[0][0].unit.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    forced = some_gates(gated, 5)
    out = gated(images, forced_gates=forced)
    opened = forced["units"]
    assert seen == [5 if training and compute == "masked" else int(opened[:, 0].sum())]
    assert torch.equal(gated.last_gates["units"], opened)
    for image, gates, found in zip(images, opened, out, strict=True):
        alone = copy.deepcopy(model)
        for name, g in zip(UNITS, gates, strict=True):
            if not g:
                alone.set_submodule(name, nn.Identity())
        torch.testing.assert_close(found, alone(image[None])[0])


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_no_image_and_one(kind, batch):
    gated, _ = gate(make_network(), make_images(), kind=kind)
    assert gated(make_images()[:batch]).shape == (batch, 5)
    assert gated.last_gates["units"].shape == gated.last_scores["units"].shape == (batch, 3)
    filters, _ = gate_filters(make_network(), make_images())
    assert filters(make_images()[:batch]).shape == (batch, 5)
    assert filters.last_gates["filters"].shape == (batch, 44)


def test_the_thresholds_are_the_units_own_or_the_calls():
    gated, _ = gate(make_network(), make_images(), threshold=0.9)
    gated(make_images())
    assert not gated.last_gates["units"].any()
    assert gated.last_scores["units"].allclose(torch.tensor(0.88))
    for thresholds in (0.8, {"units": 0.8}):
        gated(make_images(), thresholds=thresholds)
        assert gated.last_gates["units"].all()


def test_a_recurrent_gate_hands_its_state_from_unit_to_unit():
    gated, _ = gate(make_network(), make_images(), kind="recurrent")
    nn.init.normal_(gated.control.proj.weight)
    pooled = {}
    for name in UNITS:
        part = gated.network.get_submodule(name)
        part.gate.register_forward_hook(lambda m, args, out, name=name: pooled.setdefault(name, out))
    gated(make_images())
    state, scores = None, []
    for name in UNITS:
        score, state = gated.control(pooled[name], state)
        scores.append(score)
    assert torch.equal(gated.last_scores["units"], torch.stack(scores, 1))
    assert len(gated.last_scores["units"].unique()) > 5


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gates_learn_in_training(kind, noise):
    gated, _ = gate(make_network().train(), make_images(), kind=kind)
    assert gated.training
    set_noise(gated, noise)
    torch.manual_seed(0)
    gated(make_images(64))
    gates, scores = gated.gates["units"], gated.scores["units"]
    assert set(gates.unique().tolist()) == ({1.0} if noise == 0 else {0.0, 1.0})
    if noise:
        assert gates.mean().item() == pytest.approx(0.88, abs=0.07)
    (gated.cost() + scores.sum()).backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in gated.last_linears())


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_gates_decide_in_training_as_in_inference(kind):
    gated, _ = gate(make_network(), make_images(), kind=kind)
    for module in gated.network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
    decide_differently(gated, make_images())
    expected = gated.last_gates["units"]
    for before in (True, False):
        gated.train(before)
        gated.learn_gates(False)
        gated.train()
        for module in gated.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        gated(make_images())
        assert torch.equal(gated.last_gates["units"], expected) and not gated.gates["units"].requires_grad
    gated.learn_gates(True)
    gated(make_images())
    assert gated.gates["units"].requires_grad and all(part.gate.training for part in gated.gated())


def test_the_cost_is_what_the_images_compute():
    gated, report = gate(make_network(), make_images())
    forced = some_gates(gated, 5)
    gated(make_images(), forced_gates=forced)
    macs = torch.tensor([part.macs for part in report.parts])
    fixed = report.macs + report.gate_macs - macs.sum()
    expected = (fixed + (forced["units"] * macs).sum(1)).float().mean() / report.macs
    assert gated.cost().item() == pytest.approx(expected.item())
    assert gate_macs(gated) is gated.gate_macs and gated.gate_macs.fixed == fixed


@pytest.mark.long
def test_a_loss_on_the_cost_shuts_gates():
    torch.manual_seed(0)
    gated, report = gate(make_network().train(), make_images())
    optimiser = torch.optim.SGD(gated.gate_parameters(), 0.5)
    for _ in range(60):
        optimiser.zero_grad()
        gated(make_images(16))
        (10 * (gated.cost() - 0.5).clamp(min=0) ** 2).backward()
        optimiser.step()
    gated.eval()(make_images(16))
    assert gated.cost().item() < 0.75 < 1 + report.gate_macs / report.macs


def test_the_trainers_policy_takes_it():
    recipe = {
        "name": "foreign",
        "model": "resnet-18",
        "data": {"kind": "synthetic"},
        "train": {"epochs": 1},
        "policy": {"cost": 4.0, "target": 0.5, "target_end": 0.1, "noise": 0.7, "information": 0.1},
    }
    gated, report = gate(make_network().train(), make_images())
    policy = Policy(Recipe.model_validate(recipe), gated)
    policy.begin_step(gated, 0.0)
    assert {part.noise for part in gated.gated()} == {0.7}
    labels = torch.arange(5)
    logits = gated(make_images())
    loss, facts = policy.loss(gated.scores, gated.gates, {"units": (logits, labels)}, make_images(), 1.0)
    loss.backward()
    assert facts["macs"] == pytest.approx(gated.cost().item())
    # Every gate's MACs count: pushing a score up costs more.
    assert all(linear.bias.grad.item() > 0 for linear in gated.last_linears())
    shut = policy.ungated(gated, make_images())
    assert {name: draws.shape for name, draws in shut.items()} == {"units": (5, 3)}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_it_exports_with_a_word_for_each_gate(kind):
    model, images = make_network(), make_images()
    gated, _ = gate(model, images, kind=kind)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(gated, (images,), dynamic_shapes={"args": ({0: batch},)}, strict=False)
    module = program.run_decompositions().module()
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(torch.ops.dsn.where_open.default) == 3
    decide_differently(gated, images)
    changed = torch.export.export(gated, (images,), strict=False).module()
    torch.testing.assert_close(changed(images), gated(images))
    torch.testing.assert_close(module(images[:2]), model(images[:2]))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_whole_and_trains(kind):
    results = []
    for compiles in (False, True):
        gated, _ = gate(make_network().train(), make_images(), kind=kind)
        set_noise(gated, 0.0)
        network = torch.compile(gated, fullgraph=True, backend="aot_eager") if compiles else gated
        out = network(make_images())
        (out.square().sum() + gated.cost() + gated.scores["units"].sum()).backward()
        results.append({key: p.grad for key, p in gated.named_parameters() if p.grad is not None} | {"": out.detach()})
    assert results[0].keys() == results[1].keys()
    for key, expected in results[0].items():
        torch.testing.assert_close(results[1][key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_in_memory_and_in_files(kind):
    gated, _ = gate(make_network(), make_images(), kind=kind)
    decide_differently(gated, make_images())
    expected = gated(make_images())
    file = io.BytesIO()
    torch.save(gated, file)
    file.seek(0)
    fresh, _ = gate(make_network(seed=3), make_images(), kind=kind)
    fresh.load_state_dict(gated.state_dict())
    for part, other in zip(fresh.gated(), gated.gated(), strict=True):
        part.threshold = other.threshold
    for other in (copy.deepcopy(gated), torch.load(file, weights_only=False), fresh):
        assert other.last_gates == {}
        torch.testing.assert_close(other(make_images()), expected)
        assert torch.equal(other.last_gates["units"], gated.last_gates["units"])
    assert "network.stages.0.1.unit.conv1.weight" in gated.state_dict()


def test_forced_gates_of_an_evaluation():
    gated, _ = gate(make_network(), make_images(), threshold=0.9)
    assert all_open(gated, 2)["units"].tolist() == [[1] * 3] * 2
    torch.testing.assert_close(gated(make_images(), forced_gates=all_open(gated, 5)), make_network()(make_images()))
    with pytest.raises(UserError, match=r"forced_gates\['units'\] is torch.float32 \[5, 2\]; expected 0 and 1"):
        gated(make_images(), forced_gates={"units": torch.ones(5, 2)})
    with pytest.raises(UserError, match=r"forced_gates\['units'\] holds 0.5; expected only 0 and 1"):
        gated(make_images(), forced_gates={"units": torch.full((5, 3), 0.5)})
    with pytest.raises(UserError, match=r"thresholds has the keys \['fine'\]; expected 'units'"):
        gated(make_images(), thresholds={"fine": 0.5})


@torch.no_grad()
def test_a_unit_that_works_in_place_leaves_the_input_to_those_that_skip_it():
    model = make_network((nn.Conv2d(3, 4, 1), Preactivated(4), nn.Flatten()))
    gated, report = gate(model, make_images(), units="1")
    shut = {"units": torch.tensor([[0], [1], [1], [1], [1]], dtype=torch.uint8)}
    out = gated(make_images(), forced_gates=shut)
    assert torch.equal(out[0], model[0](make_images())[0].flatten()) and (out[0] < 0).any()
    torch.testing.assert_close(out[1:], model(make_images())[1:])
    with torch.enable_grad():
        gated.train()(make_images()).sum().backward()
    assert gated.network[0].weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "part", [nn.Conv2d(4, 4, 3, padding=1), SqueezeExcitation(4), Shuffled(4), Unit(4, 4, F.relu6), Unit(4, 4, F.tanh)]
)
def test_what_is_not_residual_is_gated_by_name_only(part):
    model = make_network((nn.Conv2d(3, 4, 1), part, nn.Flatten()))
    with pytest.raises(UserError, match="the Sequential has no residual unit that keeps its map's shape and runs once"):
        gate(model, make_images())
    assert names(gate(model, make_images(), units="1")[1]) == ["1"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_types(dtype, kind):
    gated, report = gate(make_network().to(dtype), make_images(dtype=dtype), kind=kind)
    assert names(report) == UNITS
    assert gated(make_images(dtype=dtype)).dtype == dtype
    assert {p.dtype for p in gated.parameters()} == {dtype}


@pytest.mark.parametrize("compute", ["masked", "selected"])
def test_under_autocast(compute):
    gated, _ = gate(make_network().train(), make_images())
    set_compute(gated, compute)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = gated(make_images())
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in gated.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("stages.*.*", UNITS),
        ("stages.0", ["stages.0"]),
        (["stages.1.1", "stages.0.1"], ["stages.0.1", "stages.1.1"]),
        (["stages.0", "stages.0.1", "plain"], ["plain", "stages.0"]),
        ("p*", ["plain"]),
        (lambda name, module: isinstance(module, Unit), UNITS),
        (lambda name, module: True, ["plain", "stages.0", "stages.1.0.conv2", "stages.1.0.excitation", "stages.1.1"]),
    ],
)
def test_units_by_name_pattern_or_function(units, expected):
    gated, report = gate(make_network(), make_images(), units=units)
    assert names(report) == expected
    assert torch.equal(gated(make_images()), make_network()(make_images()))


def test_modules_keep_their_modes():
    model = make_network().train()
    model.stem[1].eval()
    for made in (gate(model, make_images())[0], gate_filters(model, make_images(), "stages.*.*.conv1")[0]):
        assert made.training and not made.network.stem[1].training
        assert made.network.get_submodule("stages.1.0.bn2").training
    assert model.training and not model.stem[1].training


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = Unit(3, 3)

    def forward(self, x):
        return self.unit(self.unit(x))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.merge = Merge()

    def forward(self, x):
        return self.merge(x, x)


class Merge(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x, y):
        return x + self.conv(y)


X = make_images()
BAD = [
    (Network, {"units": "stages.0.7"}, r"'stages.0.7', which matches no module of the Network; did you mean 'stages.0"),
    (Network, {"units": "*.zzz"}, r"units has '\*.zzz', which matches no module of the Network; expected a name"),
    (Network, {"units": "stages.1.0"}, r"but stages.1.0 maps \[1, 4, 4, 4\] to \[1, 6, 4, 4\]; expected a map"),
    (Network, {"units": "fc"}, r"units has 'fc', but fc maps \[1, 6\] to \[1, 5\]; expected a map \[B, C, H, W\]"),
    (Network, {"units": "stem.2"}, "but stem.2 has no convolution or linear layer; expected one that costs MACs"),
    (Network, {"units": "stages"}, "units has 'stages', but stages is not called itself; expected one that is"),
    (
        Network,
        {"units": lambda name, module: False},
        "units chose no module that can be skipped in the Network; expect",
    ),
    (Network, {"kind": "conv"}, "kind is 'conv'; expected one of pooled, mlp, recurrent"),
    (Network, {"threshold": 2}, r"threshold is 2; expected a number in \[0, 1\]"),
    (Network, {"example": X.to("meta")}, "example is on meta; expected cpu, where the model is"),
    (Network, {"example": X.double()}, "example is float64; expected float32, as the model's weights are"),
    (Network, {"example": X[:0]}, r"example is \[0, 3, 8, 8\]; expected images \[B, C, H, W\], at least one"),
    (Network, {"example": None}, "example is NoneType; expected images"),
    (Twice, {}, "the Twice has no residual unit that keeps its map's shape and runs once; expected one, or units by"),
    (Twice, {"units": "unit"}, "units has 'unit', but unit runs 2 times in a call; expected once"),
    (TwoInputs, {"units": "merge"}, "but merge maps something else than one tensor to one; expected a map to a map"),
]


@pytest.mark.parametrize(("of", "options", "message"), BAD)
def test_what_does_not_fit_is_refused_in_one_line(of, options, message):
    with pytest.raises(UserError, match=message) as error:
        gate(make_network(of), **{"example": make_images(), **options})
    assert "\n" not in str(error.value)


def test_a_gated_network_is_not_gated_again():
    gated, _ = gate(make_network(), make_images())
    for again in (gate, gate_filters):
        with pytest.raises(UserError, match="the GatedNetwork is gated already; expected one without gates"):
            again(gated, make_images())


def test_a_model_without_values_is_refused():
    with pytest.raises(UserError, match="the Network is on meta; expected one whose weights have values"):
        gate(make_network().to("meta"), make_images().to("meta"))


def test_there_is_no_cost_before_a_call():
    with pytest.raises(UserError, match="the network has no last call to tell the cost of; call it first"):
        gate(make_network(), make_images())[0].cost()


def test_the_gates_kinds():
    mlp = make_gate("mlp", 7, 3)
    assert [type(layer) for layer in mlp] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert mlp(torch.randn(4, 7)).shape == (4, 3) and mlp[0].out_features == 16
    assert make_gate("recurrent", 7).out_features == 10


CONVS = ["stem.0", *(f"stages.{s}.{u}.conv{c}" for s in (0, 1) for u in (0, 1) for c in (1, 2))]


@pytest.mark.parametrize("kind", ["pooled", "mlp"])
def test_filters_are_chosen(kind):
    model, images = make_network(), make_images()
    gated, report = gate_filters(model, images, kind=kind)
    assert names(report) == CONVS and report.parts[0].gates == 4 and report.parts[-1].gates == 6
    assert report.share == pytest.approx(sum(p.macs for p in report.parts) / report.macs)
    assert torch.equal(gated(images), model(images))
    forced = some_gates(gated, 5)
    left = {}
    for name in ("stem.1", "stages.1.1.bn2"):
        gated.network.get_submodule(name).register_forward_hook(lambda m, a, out, name=name: left.update({name: out}))
    gated(images, forced_gates=forced)
    for name, gates in (("stem.1", forced["filters"][:, :4]), ("stages.1.1.bn2", forced["filters"][:, -6:])):
        assert torch.equal(left[name].abs().sum((2, 3)) != 0, gates != 0)
    expected = gated.gate_macs.executed(forced).mean() / report.macs
    assert gated.cost().item() == pytest.approx(expected.item())


@pytest.mark.long
def test_filter_gates_learn_and_export():
    gated, _ = gate_filters(make_network().train(), make_images(), "stages.*.*.conv1")
    torch.manual_seed(0)
    out = gated(make_images(32))
    assert gated.gates["filters"].mean().item() == pytest.approx(0.88, abs=0.05)
    (out.sum() + gated.cost()).backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in gated.last_linears())
    program = torch.export.export(gated.eval(), (make_images(),), strict=False).run_decompositions()
    targets = [node.target for node in program.module().graph.nodes]
    assert targets.count(torch.ops.dsn.choose_filters.default) == 4
    torch.testing.assert_close(copy.deepcopy(gated)(make_images()), gated(make_images()))


def test_depthwise_filters_follow_those_before_them():
    model = make_network((nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)))
    assert names(gate_filters(model, make_images())[1]) == ["0"]
    assert names(gate_filters(model, make_images(), ["0", "2"])[1]) == ["0", "2"]
    assert names(gate_filters(model, make_images(), lambda name, conv: conv.groups == 4)[1]) == ["2"]


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("plain", "units has 'plain', but plain is no convolution whose output a batch norm reads, once in a call"),
        (lambda name, conv: False, "the Network has no convolution to choose filters of; expected one whose output a"),
        ("stem.9", "units has 'stem.9', which matches no module of the Network; did you mean 'stem"),
    ],
)
def test_filters_that_do_not_fit(units, message):
    with pytest.raises(UserError, match=message):
        gate_filters(make_network(), make_images(), units)


def test_filters_have_no_recurrent_gate():
    with pytest.raises(UserError, match="kind is 'recurrent'; expected one of pooled, mlp"):
        gate_filters(make_network(), make_images(), kind="recurrent")


# Units of the published networks that keep their map's shape, and their share of the MACs of an image of 64 x 64.
FOREIGN = [
    ("torchvision", "resnet18", 5, "BasicBlock", 0.635),
    ("torchvision", "resnet50", 12, "Bottleneck", 0.637),
    ("torchvision", "mobilenet_v2", 10, "InvertedResidual", 0.492),
    ("torchvision", "efficientnet_b0", 9, "MBConv", 0.535),
    ("torchvision", "convnext_tiny", 18, "CNBlock", 0.956),
    ("timm", "mobilenetv2_100", 10, "InvertedResidual", 0.492),
    ("timm", "seresnet50", 12, "Bottleneck", 0.638),
    ("pytorchcv", "resnet20_cifar10", 7, "ResUnit", 0.809),
    ("pytorchcv", "wrn16_10_cifar10", 3, "PreResUnit", 0.587),
]


@pytest.mark.long
@pytest.mark.parametrize(("library", "name", "count", "kind", "share"), FOREIGN)
@torch.no_grad()
def test_units_of_networks_that_others_define(library, name, count, kind, share):
    model, images = make_foreign(library, name), torch.randn(2, 3, 64, 64)
    if library == "pytorchcv":
        images = images[..., :32, :32]
    gated, report = gate(model, images)
    assert len(report.parts) == count and {part.kind for part in report.parts} == {kind}
    assert report.share == pytest.approx(share, abs=0.0006)
    assert torch.equal(gated(images), model(images))
    program = torch.export.export(gated, (images,), strict=False)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.dsn.where_open.default) == count


@pytest.mark.long
@pytest.mark.parametrize("name", ["vgg16", "densenet121"])
def test_networks_without_residual_units_are_refused(name):
    model = make_foreign("torchvision", name)
    with pytest.raises(UserError, match="has no residual unit that keeps its map's shape and runs once"):
        gate(model, torch.randn(1, 3, 64, 64))
