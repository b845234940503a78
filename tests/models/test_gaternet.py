"""GaterNet: SemHash, gate points of every backbone, the masked formula written out, training."""

import copy
import dataclasses

import pytest
import torch
from small_recipes import GATERNET
from torch.nn import functional as F

import dsn_models
from dsn_models import UserError
from dsn_models.gaternet import GaterNet, GaterNetConfig
from dsn_models.gates import SemHash, saturating_sigmoid
from dsn_models.training import Recipe, train
from dsn_models.training.calibration import calibrate, filter_harm
from dsn_models.training.objectives import make_objective
from dsn_models.training.recipe import tomllib
from tests.networks import make_images, make_small

SMALL_GATERNETS = [
    "gaternet-resnet-20",
    "gaternet-resnet-101",
    "gaternet-resnet-164",
    "gaternet-densenet-100-12",
    "gaternet-shake-shake-64d",
]


def conv(module, x):
    return F.conv2d(x, module.weight, None, module.stride, module.padding)


def norm(module, x):
    return F.batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)


def times(x, mask):
    return x * mask[:, :, None, None]


class Mask:
    """Hands out a mask's slices in order, ones where a convolution is not gated."""

    def __init__(self, mask, gated):
        self.mask, self.gated, self.used = mask, gated, 0

    def take(self, channels, last):
        if self.gated == "last" and not last:
            return torch.ones(len(self.mask), channels, dtype=self.mask.dtype)
        self.used += channels
        return self.mask[:, self.used - channels : self.used]


def residual(unit, x, mask):
    """Post-activation residuals of two or three convolutions."""
    count = 3 if hasattr(unit, "conv3") else 2
    for i in range(1, count + 1):
        module = getattr(unit, f"conv{i}")
        x = times(norm(getattr(unit, f"norm{i}"), conv(module, x)), mask.take(module.out_channels, i == count))
        x = x if i == count else x.relu()
    return x


def by_hand_resnet(net, images, mask):
    x = net.stem(images)
    for unit in net.units:
        x = (unit.shortcut(x) + residual(unit, x, mask)).relu()
    return net.head(x)


def by_hand_preact(net, images, mask):
    x = net.stem(images)
    for unit in net.units:
        r = unit.residual
        y = conv(r.conv1, norm(r.norm1, x).relu())
        y = conv(r.conv2, times(norm(r.norm2, y), mask.take(y.shape[1], False)).relu())
        y = conv(r.conv3, times(norm(r.norm3, y), mask.take(y.shape[1], False)).relu())
        x = unit.shortcut(x) + times(y, mask.take(y.shape[1], True))
    return net.head(x)


def by_hand_densenet(net, images, mask):
    x = net.stem(images)
    for i, block in enumerate(net.blocks):
        x = x if i == 0 else net.transitions[i - 1](x)
        for j, layer in enumerate(block.layers):
            y = conv(layer.conv1, norm(layer.norm1, x).relu())
            y = norm(layer.norm2, y)
            y = y if j == 0 else times(y, mask.take(y.shape[1], False))
            y = conv(layer.conv2, y.relu())
            x = torch.cat([x, y if j == 0 else times(y, mask.take(y.shape[1], True))], 1)
    return net.head(x)


def by_hand_shake_shake(net, images, mask):
    x = net.stem(images)
    for unit in net.units:
        branches = [residual(branch, x.relu(), mask) for branch in (unit.branch1, unit.branch2)]
        x = unit.shortcut(x) + sum(branches) / 2
    return net.head(x)


def by_hand_inception(net, images, mask):
    x = images
    for module in [*net.stem, *net.units]:
        x = module(x)
        if not hasattr(module, "conv"):
            x = times(x, mask.take(x.shape[1], True))
    return net.head(x)


BY_HAND = {
    "gaternet-resnet-20": by_hand_resnet,
    "gaternet-resnet-101": by_hand_resnet,
    "gaternet-resnet-164": by_hand_preact,
    "gaternet-densenet-100-12": by_hand_densenet,
    "gaternet-shake-shake-64d": by_hand_shake_shake,
    "gaternet-inception-v4": by_hand_inception,
}


@pytest.mark.parametrize("gated", ["last", "all"])
@pytest.mark.parametrize("name", SMALL_GATERNETS)
def test_eval_is_the_masked_formula(name, gated):
    model = make_small(name, gated=gated).double()
    images = make_images(model, 5, torch.float64)
    logits = model(images)
    gates = model.last_gates["filters"]
    assert gates.dtype == torch.uint8 and gates.shape == (5, model.num_gates)
    assert torch.equal(gates, (model.gater(images) > 0).to(torch.uint8))
    assert gates.any() and not gates.all()
    mask = Mask(gates.double(), gated)
    torch.testing.assert_close(logits, BY_HAND[name](model.backbone, images, mask), rtol=1e-10, atol=1e-10)
    assert mask.used == model.num_gates


def test_inception_is_masked_after_each_concatenation():
    model = make_small("gaternet-inception-v4").double()
    images = make_images(model, 2, torch.float64)
    forced = torch.randint(0, 2, (2, model.num_gates), dtype=torch.uint8)
    logits = model(images, {"filters": forced})
    mask = Mask(forced.double(), "last")
    torch.testing.assert_close(logits, by_hand_inception(model.backbone, images, mask), rtol=1e-10, atol=1e-10)
    assert mask.used == model.num_gates


def test_an_off_filter_is_exactly_off_and_open_gates_are_the_backbone():
    model = make_small("gaternet-resnet-20")
    images = make_images(model, 3)
    outputs = {}
    for point in model.gate_points:
        model.backbone.get_submodule(point.module).register_forward_hook(
            lambda module, args, output, name=point.module: outputs.__setitem__(name, output)
        )
    forced = torch.randint(0, 2, (3, model.num_gates), dtype=torch.uint8)
    model(images, {"filters": forced})
    assert torch.equal(model.last_gates["filters"], forced)
    for point in model.gate_points:
        off = forced[:, point.gates] == 0
        assert (outputs[point.module][off] == 0).all() and (outputs[point.module][~off] != 0).any()
    dense = model.dense_equivalent()(images)
    assert torch.equal(model(images, {"filters": torch.ones_like(forced)}), dense)
    assert not torch.equal(model(images, {"filters": forced}), dense)


@pytest.mark.parametrize("gated", ["last", "all"])
@pytest.mark.parametrize("name", [name for name in dsn_models.names() if name.startswith("gaternet")])
def test_gate_points_name_convolution_and_norm_of_every_slice(name, gated):
    with torch.device("meta"):
        model = dsn_models.create(name, gated=gated)
    assert [p.gates.start for p in model.gate_points] == [0, *(p.gates.stop for p in model.gate_points[:-1])]
    assert sum(model.unit_sizes.values()) == model.num_gates == model.gater.fc2.out_features
    for point in model.gate_points:
        model.backbone.get_submodule(point.module)
        for convolution in point.convolutions:
            filters = convolution.gates.stop - convolution.gates.start
            assert point.gates.start <= convolution.gates.start <= convolution.gates.stop <= point.gates.stop
            assert model.backbone.get_submodule(convolution.conv).out_channels == filters
            if convolution.norm is not None:
                assert model.backbone.get_submodule(convolution.norm).num_features == filters


def test_bottlenecks_of_resnet_164():
    with torch.device("meta"):
        backbone = dsn_models.create("gaternet-resnet-164").backbone
    widths = [backbone.units[i].residual.conv1.out_channels for i in (0, 18, 36)]
    assert widths == [4, 32, 64]


def test_saturating_sigmoid_by_finite_differences():
    x = torch.tensor([[-3.0, -1.0, 0.0, 0.7, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(saturating_sigmoid, (x,))
    assert saturating_sigmoid(x)[0, 0] == 0 and saturating_sigmoid(x)[0, -1] == 1


def test_semhash_trains_half_of_the_samples_with_binary_gates_and_one_gradient():
    gate, scores = SemHash().train(), torch.zeros(64, 50, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    gates = gate(scores)
    binary = ((gates == 0) | (gates == 1)).all(1)
    assert binary.sum() == 32
    torch.manual_seed(3)
    noisy = (scores + torch.randn(64, 50, dtype=torch.float64)).detach().requires_grad_()
    alpha = saturating_sigmoid(noisy)
    assert torch.equal(gates[~binary], alpha[~binary])
    assert torch.equal(gates[binary], (noisy > 0).double()[binary])
    weights = torch.randn(64, 50, dtype=torch.float64)
    (gates * weights).sum().backward()
    (alpha * weights).sum().backward()
    torch.testing.assert_close(scores.grad, noisy.grad)


def test_semhash_by_finite_differences():
    """g_alpha's samples against finite differences of the gate itself, at a fixed draw of the noise."""
    gate, weights = SemHash().train(), torch.randn(8, 6, dtype=torch.float64)
    scores = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)

    def loss(scores):
        torch.manual_seed(5)
        gates = gate(scores)
        real = ~((gates == 0) | (gates == 1)).all(1)
        assert real.sum() == 4
        return (gates * weights)[real].sum()

    assert torch.autograd.gradcheck(loss, (scores,))


def test_semhash_in_eval_has_no_noise():
    scores = torch.randn(9, 7)
    assert torch.equal(SemHash().eval()(scores), (scores > 0).float())


def test_training_masks_are_noisy_and_reach_the_gater():
    model = make_small("gaternet-resnet-20").train()
    images = make_images(model, 8)
    model(images).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.gater.fc2.parameters())
    assert model.gater.features.stem[0].weight.grad.abs().sum() > 0


def test_gate_dropout_shuts_gates_in_training_only():
    model = make_small("gaternet-resnet-20").train()
    images, masks = make_images(model, 64), []
    with torch.no_grad():
        model.gater.fc2.bias.fill_(50.0)
    first = model.backbone.get_submodule(model.gate_points[0].module)
    first.register_forward_hook(lambda module, args, output: masks.append((output == 0).all((2, 3)).float().mean()))
    model.gate_dropout = 0.25
    model(images)
    model.eval()(images)
    assert 0.15 < masks[0] < 0.35 and masks[1] == 0


@torch.no_grad()
def test_a_filter_is_on_above_the_threshold():
    model = make_small("gaternet-resnet-20")
    images = make_images(model, 4)
    model(images)
    scores = model.last_scores["filters"].clone()
    limit = scores.median().item()
    expected = model(images, {"filters": (scores > limit).to(torch.uint8)})
    for thresholds in (limit, {"filters": limit}):
        torch.testing.assert_close(model(images, thresholds=thresholds), expected)
        assert torch.equal(model.last_gates["filters"], (scores > limit).to(torch.uint8))
    model.config = dataclasses.replace(model.config, threshold=limit)
    torch.testing.assert_close(model(images), expected)
    with pytest.raises(UserError, match="threshold is nan; expected a finite number"):
        model(images, thresholds=float("nan"))
    with pytest.raises(UserError, match=r"thresholds has the keys \['units'\]; expected 'filters'"):
        model(images, thresholds={"units": 0.5})


def test_a_frozen_gater_decides_as_in_eval():
    model = make_small("gaternet-resnet-20")
    images = make_images(model, 4)
    expected = model(images)
    assert torch.equal(model.last_gates["filters"], (model.gater(images) > 0).to(torch.uint8))
    model.gater.requires_grad_(False)
    model.train()
    for module in model.backbone.modules():
        module.training = False
    assert torch.equal(model(images), expected)


def test_a_copy_is_masked_by_its_own_gates():
    model = make_small("gaternet-resnet-20")
    copied, images = copy.deepcopy(model), make_images(model, 3)
    expected = model(images)
    with torch.no_grad():
        model.gater.fc2.bias.fill_(-50.0)
    assert torch.equal(copied(images), expected)
    assert not torch.equal(model(images), expected)


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ({"units": None}, "forced_gates has the keys"),
        (torch.ones(2, 3), "forced_gates is a Tensor"),
        ({"filters": torch.ones(2, 3)}, r"forced_gates\['filters'\] is torch.float32 \[2, 3\]; expected 0 and 1"),
    ],
)
def test_forced_gates_are_checked(forced, message):
    model = make_small("gaternet-resnet-20")
    with pytest.raises(UserError, match=message):
        model(make_images(model, 2), forced)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gated": "first"}, "gated is 'first'; expected one of last, all"),
        ({"bottleneck": 0}, "bottleneck is 0"),
        ({"backbone": "resnet-21"}, "backbone is 'resnet-21'"),
        ({"gater": "densenet-40"}, "gater is 'densenet-40'; expected a ResNet"),
        ({"backbone_options": {"width": 3}}, "unknown key 'width' in backbone_options; expected one of stage_units"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        dsn_models.create("gaternet-resnet-20", **options)


def test_backbone_and_gater_see_the_same_images_and_classes():
    config = GaterNetConfig("n", "resnet-20", "resnet-20", 8, 7, {"stage_units": [1, 1, 1]}, in_channels=1)
    model = GaterNet(config)
    assert model.backbone.config.classes == 7 and model.gater.features.config.in_channels == 1
    assert config.backbone_options == {"stage_units": (1, 1, 1)}
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


TINY = tomllib.loads(GATERNET)


@pytest.fixture
def backbone(tmp_path):
    torch.manual_seed(0)
    model = dsn_models.create("resnet-20", in_channels=1, image_size=16, stage_units=(1, 1, 1))
    return model, str(dsn_models.save(model, tmp_path / "backbone.safetensors"))


def test_a_run_from_a_backbone(backbone, tmp_path):
    recipe = Recipe.model_validate({**TINY, "init": backbone[1]})
    path = train(recipe, None, tmp_path / "out", progress=False)
    model = dsn_models.load(path)
    assert model.config.backbone_options == {"stage_units": (1, 1, 1), "shortcut": "pad"}
    facts = dsn_models.checkpoints.read_metadata(path)
    assert 0 < facts["test"]["fine"]["skipped"] < 1
    state = torch.load(tmp_path / "out" / "tiny.state", weights_only=True)
    assert {"gates/on", "filters/skipped"} <= set(state["progress"]["history"][0])


def test_backbone_and_gater_start_from_the_backbone(backbone):
    recipe = Recipe.model_validate({**TINY, "init": backbone[1]})
    model = dsn_models.create(recipe.model, **recipe.options)
    make_objective(recipe, model).initialise(model)
    for name, tensor in backbone[0].state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)
    for name, tensor in model.gater.features.state_dict().items():
        assert torch.equal(backbone[0].state_dict()[name], tensor)


def test_a_gater_may_have_its_own_beginning(backbone, tmp_path):
    gater = dsn_models.create("resnet-20", in_channels=1, image_size=16, stage_units=(1, 1, 1), classes=7)
    path = str(dsn_models.save(gater, tmp_path / "gater.safetensors"))
    recipe = Recipe.model_validate({**TINY, "init": backbone[1], "gater": {"init": path}})
    model = dsn_models.create(recipe.model, **recipe.options)
    make_objective(recipe, model).initialise(model)
    assert torch.equal(model.backbone.stem[0].weight, backbone[0].stem[0].weight)
    assert torch.equal(model.gater.features.stem[0].weight, gater.stem[0].weight)


def test_a_foreign_backbone_is_refused(tmp_path):
    other = dsn_models.create("resnet-20", in_channels=1, image_size=16, stage_units=(1, 1, 1), shortcut="projection")
    path = str(dsn_models.save(other, tmp_path / "other.safetensors"))
    recipe = Recipe.model_validate({**TINY, "init": path})
    model = dsn_models.create(recipe.model, **recipe.options)
    with pytest.raises(UserError, match="has a tensor .*shortcut.*, for which"):
        make_objective(recipe, model).initialise(model)


def test_sparsity_reaches_the_gater_and_not_the_backbone(backbone):
    images, labels = torch.randn(8, 1, 16, 16), {"fine": torch.randint(0, 10, (8,))}
    gradients = []
    for sparsity in (0.0, 5.0):
        recipe = Recipe.model_validate({**TINY, "gater": {"sparsity": sparsity}})
        torch.manual_seed(0)
        model = dsn_models.create(recipe.model, **recipe.options).train()
        loss, facts = make_objective(recipe, model).loss(model, images, labels, "joint")
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0]["backbone.stem.0.weight"], gradients[1]["backbone.stem.0.weight"])
    change = gradients[1]["gater.fc2.bias"] - gradients[0]["gater.fc2.bias"]
    assert (change >= 0).all() and (change > 0).any()
    assert facts["gates/on"] < 1


@pytest.mark.long
def test_calibrated_gates_begin_with_the_least_harmful_filters_off(backbone):
    recipe = Recipe.model_validate({**TINY, "init": backbone[1]})
    model = dsn_models.create(recipe.model, **recipe.options)
    objective = make_objective(recipe, model)
    objective.initialise(model)
    dataset = dsn_models.data.open_dataset("navon-sklearn", None, True, 64, canvas=16, glyph=4)
    images, _, labels = dataset.batch(torch.arange(64))
    harm = filter_harm(model.eval(), images, {"filters": labels})
    calibrate(model, dataset, {"filters": 0.7}, "fine")
    bias = model.gater.fc2.bias
    off = bias < 0
    assert abs(off.float().mean() - 0.3) < 1 / model.num_gates
    assert harm[off].max() <= harm[~off].min()
    assert bias.min() == -1 and bias.max() == 2


@pytest.mark.long
def test_filter_harm_by_finite_differences(backbone):
    """To first order: the change of the loss when one filter's mask shrinks."""
    recipe = Recipe.model_validate({**TINY, "init": backbone[1]})
    model = dsn_models.create(recipe.model, **recipe.options).double()
    make_objective(recipe, model).initialise(model)
    dataset = dsn_models.data.open_dataset("navon-sklearn", None, True, 16, canvas=16, glyph=4)
    images, _, labels = dataset.batch(torch.arange(16))
    images = images.double()

    def losses(mask):
        handle = model.gate.register_forward_hook(lambda *_: mask.expand(16, -1))
        try:
            return F.cross_entropy(model.eval()(images), labels, reduction="none")
        finally:
            handle.remove()

    ones = torch.ones(model.num_gates, dtype=torch.float64)
    step = 1e-6
    d = torch.stack([(losses(ones) - losses(ones - step * row)) / step for row in torch.eye(len(ones)).double()], 1)
    expected = (d.square() / 2 - d).mean(0)
    harm = filter_harm(model.float(), images.float(), {"filters": labels})
    torch.testing.assert_close(harm, expected, rtol=1e-2, atol=1e-4)


def test_dropout_by_epochs_needs_epochs(backbone):
    table = {**TINY, "train": {"iterations": 2, "batch": 16}}
    recipe = Recipe.model_validate(table)
    model = dsn_models.create(recipe.model, **recipe.options)
    dataset = dsn_models.data.open_dataset("navon-sklearn", None, True, 16, canvas=16, glyph=4)
    with pytest.raises(UserError, match="gater.dropout rises by epochs; set train.epochs"):
        make_objective(recipe, model).check(model, dataset)
