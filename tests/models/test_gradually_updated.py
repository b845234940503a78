"""Gradually and simultaneously updated networks: order of updates, gradients, configurations."""

import copy

import pytest
import torch

import dsn_models
from dsn_models import UserError
from dsn_models.gradually_updated import GradualLayer
from tests.networks import make_images, make_small


def make_layer(order="gradual", recompute=True, sizes=(1, 2, 3), units=2, dtype=torch.float64, residual=True):
    torch.manual_seed(0)
    return GradualLayer(sizes, 2, units, True, order, recompute, residual).to(dtype)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_gradual_layer_by_hand(training, residual):
    layer = make_layer(residual=residual).train(training)
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    expected = [x[:, i] for i in range(6)]
    first = 0
    for unit in layer.units:
        update = unit(torch.stack(expected, 1))
        for i in range(update.shape[1]):
            expected[first + i] = expected[first + i] * residual + update[:, i]
        first += update.shape[1]
    expected = torch.stack(expected, 1)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach())


def test_a_simultaneous_layer_reads_the_old_values():
    layer = make_layer("simultaneous")
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x + torch.cat([unit(x) for unit in layer.units], 1))
    alone = make_layer("simultaneous", residual=False)
    torch.testing.assert_close(alone(x) + x, layer(x))
    gradual = make_layer("gradual")
    gradual.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer.eval()(x), gradual.eval()(x))


@pytest.mark.parametrize("recompute", [True, False])
def test_gradual_with_one_segment_is_simultaneous(recompute):
    x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    results = []
    for order in ("gradual", "simultaneous"):
        layer, source = make_layer(order, recompute, sizes=(6,)), x.clone().requires_grad_()
        y = layer(source)
        y.square().sum().backward()
        results.append([y, source.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_recomputing_gives_autograds_gradients_and_counts_a_batch_once(training, residual):
    x, weight = torch.randn(2, 3, 6, 4, 4, dtype=torch.float64)
    results = []
    for recompute in (True, False):
        layer = make_layer(recompute=recompute, residual=residual).train(training)
        source = x.clone().requires_grad_()
        y = layer(source)
        (y * weight).sum().backward()
        results.append([y, source.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.long
def test_gradient_of_the_recomputing_function_by_finite_differences():
    layer = make_layer(sizes=(1, 2), units=1)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6)


def test_frozen_parameters_get_no_gradient():
    layer = make_layer()
    layer.units[1].requires_grad_(False)
    layer(torch.randn(2, 6, 4, 4, dtype=torch.float64)).sum().backward()
    assert all((p.grad is None) != p.requires_grad for p in layer.parameters())


def test_the_backward_pass_refuses_another_mode():
    layer = make_layer()
    y = layer(torch.randn(2, 6, 4, 4, dtype=torch.float64))
    layer.eval()
    with pytest.raises(RuntimeError, match="changed between train"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["gunn-15", "sunn-15", "gunn-24", "gunn-18"])
def test_a_network_runs_and_comes_back_from_its_checkpoint(name, tmp_path):
    model = make_small(name)
    images = make_images(model, 3)
    logits = model(images)
    assert logits.shape == (3, model.config.classes)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits)
        loaded = dsn_models.load(dsn_models.save(model, tmp_path / "model.safetensors"))
        assert loaded.config == model.config
        torch.testing.assert_close(loaded(images), logits)
    copy.deepcopy(model)(images).sum().backward()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"segments": (7, 25, 30)}, r"segments\[0\] is 7; expected a number that divides 240"),
        ({"segments": ((100, 141), 25, 30)}, "sizes that sum to 240"),
        ({"segments": ((240, 0), 25, 30)}, "sizes that sum to 240"),
        ({"segments": (0, 25, 30)}, "a number that divides 240"),
        ({"segments": (20, 25)}, "expected one entry for each of the widths"),
        ({"order": "reversed"}, "order is 'reversed'; expected one of gradual, simultaneous"),
        ({"stem": "none"}, "stem is 'none'"),
        ({"expansion": 0}, "must be positive"),
    ],
)
def test_configurations_with_mistakes(overrides, said):
    with pytest.raises(UserError, match=said):
        dsn_models.create("gunn-15", **overrides)


def test_segments_of_one_channel():
    model = dsn_models.create("gunn-15", widths=(8,), segments=(8,), image_size=8)
    assert model.layers[0].sizes == (1,) * 8
