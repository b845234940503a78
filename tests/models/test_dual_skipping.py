"""The dual skipping network against its formula written by hand, and its refusals."""

import pytest
import torch
from torch.nn import functional as F

import dsn_models
from dsn_models import UserError
from tests.networks import DUAL, make_images, make_small


def batch_norm(x, norm):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]


def one_layer(layer, x):
    x = F.conv2d(batch_norm(x, layer.norm1).relu(), layer.conv1.weight, padding=layer.conv1.weight.shape[-1] // 2)
    for norm, conv in (("norm2", "conv2"), ("norm3", "conv3")):
        if hasattr(layer, conv):
            weight = getattr(layer, conv).weight
            x = F.conv2d(batch_norm(x, getattr(layer, norm)).relu(), weight, padding=weight.shape[-1] // 2)
    return x


def one_branch(branch, x, config, guide, threshold):
    """One sample, [1, C, H, W], layers really skipped."""
    taken = []
    for i, block in enumerate(branch.blocks):
        if i > 0:
            transition = branch.transitions[i - 1]
            if guide is not None and i == len(branch.blocks) - 1:
                up = F.interpolate(guide, scale_factor=x.shape[-1] / guide.shape[-1], mode="bilinear")
                x = torch.cat([x, up], 1)
            x = F.avg_pool2d(F.conv2d(batch_norm(x, transition.norm).relu(), transition.conv.weight), 2)
        for layer, gate in zip(block.layers, block.gates, strict=True):
            z = x.mean((2, 3)) @ gate.linear.weight[0] + gate.linear.bias
            score = (z + 0.5).clamp(0, 1) if config.gate == "hard" else z.sigmoid()
            run = bool(score > threshold)
            taken.append(int(run))
            if config.merge == "add":
                x = x + one_layer(layer, x) if run else x
            else:
                empty = torch.zeros(1, config.growth_rate, *x.shape[2:], dtype=x.dtype)
                x = torch.cat([x, one_layer(layer, x) if run else empty], 1)
    pooled = batch_norm(x, branch.head.norm).relu().mean((2, 3))
    return branch.head.classifier(pooled), taken, x


@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("name", DUAL)
@torch.no_grad()
def test_eval_is_the_formula(name, gate):
    model = make_small(name, gate=gate).double()
    images = make_images(model, 3, torch.float64)
    coarse, fine = model(images, thresholds={"coarse": 0.5, "fine": 0.45})
    patterns = set()
    for i in range(3):
        x = model.stem(images[i : i + 1])
        logits, taken, guide = one_branch(model.coarse, x, model.config, None, 0.5)
        torch.testing.assert_close(coarse[i : i + 1], logits)
        assert model.last_gates["coarse"][i].tolist() == taken
        logits, taken, _ = one_branch(model.fine, x, model.config, guide if model.config.guide else None, 0.45)
        torch.testing.assert_close(fine[i : i + 1], logits)
        assert model.last_gates["fine"][i].tolist() == taken
        patterns.update(taken)
    assert model.last_gates["fine"].dtype == torch.uint8
    assert patterns == {0, 1}


@pytest.mark.parametrize("name", DUAL)
@torch.no_grad()
def test_dense_equivalent_runs_every_layer(name):
    model = make_small(name)
    images = make_images(model, 2)
    ones = {b: torch.ones(2, getattr(model, b).num_layers, dtype=torch.uint8) for b in ("coarse", "fine")}
    torch.testing.assert_close(model.dense_equivalent()(images), model(images, forced_gates=ones))
    torch.testing.assert_close(torch.jit.trace(model.dense_equivalent(), images)(images), model(images, ones))


@torch.no_grad()
def test_forced_gates_reproduce_the_decisions():
    model = make_small("concat-bc-100")
    images = make_images(model, 5)
    expected = model(images)
    forced = dict(model.last_gates)
    torch.testing.assert_close(model(images, forced, 1.0), expected, rtol=0, atol=0)


def test_training_multiplies_and_the_gates_learn():
    model = make_small("dsn-navon").train()
    coarse, fine = model(make_images(model, 4))
    (coarse.square().sum() + fine.square().sum()).backward()
    for branch in (model.coarse, model.fine):
        for block in branch.blocks:
            for gate in block.gates:
                assert gate.linear.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_pooling_before_the_convolution_is_exact_in_training():
    transition = make_small("concat-bc-100").double().coarse.transitions[0]
    x = torch.randn(2, transition.norm.num_features, 9, 7, dtype=torch.float64)
    expected = transition(x)
    transition.train()
    transition.norm.eval()
    torch.testing.assert_close(transition(x), expected)


@torch.no_grad()
def test_empty_batch():
    model = make_small("concat-bc-100")
    coarse, fine = model(make_images(model, 0))
    assert coarse.shape == (0, 20)
    assert fine.shape == (0, 100)
    assert model.last_gates["coarse"].shape == (0, 6)


def test_bad_images():
    model = make_small("concat-bc-100")
    good = make_images(model, 2)
    for bad, said in [
        (good[0], r"shape \[3, 8, 8\]; expected \[B, 3, 8, 8\] float32"),
        (good[:, :1], r"shape \[2, 1, 8, 8\]"),
        (good[:, :, 1:], r"shape \[2, 3, 7, 8\]"),
        (good.double(), "images are float64; expected"),
        (good.numpy(), "images are a ndarray"),
    ]:
        with pytest.raises(UserError, match=said):
            model(bad)


def test_bad_thresholds_and_forced_gates():
    model = make_small("concat-bc-100")
    images = make_images(model, 2)
    for threshold in (-0.1, 1.5, float("nan"), "0.5", True, {"coarse": 2, "fine": 0.5}):
        with pytest.raises(UserError, match=r"threshold of the coarse branch is .*; expected a number in \[0, 1\]"):
            model(images, thresholds=threshold)
    with pytest.raises(UserError, match="thresholds has the keys"):
        model(images, thresholds={"coarse": 0.5})
    ones = torch.ones(2, 6, dtype=torch.uint8)
    for bad, said in [
        ({"coarse": ones}, "forced_gates has the keys"),
        (
            {"coarse": ones, "fine": ones[:, :5]},
            r"forced_gates\['fine'\] is torch.uint8 \[2, 5\]; expected .* \[2, 6\]",
        ),
        ({"coarse": ones / 2, "fine": ones}, r"forced_gates\['coarse'\] holds 0.5; expected only 0 and 1"),
        ({"coarse": ones, "fine": ones * 2}, "holds 2; expected only 0 and 1"),
        (ones, "forced_gates is a Tensor"),
    ]:
        with pytest.raises(UserError, match=said):
            model(images, bad)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"merge": "mul"}, "merge is 'mul'"),
        ({"gate": "firm"}, "gate is 'firm'"),
        ({"stem": "x"}, "stem is 'x'"),
        ({"block_layers": ()}, "block_layers is"),
        ({"growth_rate": 0}, "must be positive"),
        ({"compression": 0}, "compression is 0"),
        ({"thresholds": (0.5, 2.0)}, "threshold of the fine branch is 2.0"),
        ({"block_layers": (3,)}, "guide needs a transition"),
        ({"merge": "add"}, "stage_widths is"),
        ({"stage_widths": (1, 2, 3)}, "stage_widths is for merge='add'"),
        ({"classes": 10}, r"classes is 10; concat-40 takes \(coarse, fine\)"),
        ({"depth": 3}, "unknown option 'depth'; expected one of"),
    ],
)
def test_bad_configurations(overrides, said):
    with pytest.raises(UserError, match=said):
        dsn_models.create("concat-40", **overrides)


def test_unknown_model():
    with pytest.raises(UserError, match="unknown model 'concat-41'; near it: concat-40"):
        dsn_models.create("concat-41")
    with pytest.raises(UserError, match="lenet takes one number"):
        dsn_models.create("lenet", classes=(1, 2))
