"""Layer-skippable networks: what they add to dual skipping networks, and that each addition can be switched off."""

import pytest
import torch
from small_recipes import LSN as RECIPE

import dsn_models
from dsn_models import UserError
from dsn_models.training import train
from dsn_models.training.losses import open_gates, ranking_loss
from tests.networks import make_images, make_small


def test_without_its_additions_it_is_a_dual_skipping_network():
    dual = make_small("dsn-navon")
    model = make_small("lsn-navon", guide=False, path_affine=False)
    assert list(model.state_dict()) == list(dual.state_dict())
    images = make_images(model, 3)
    model.load_state_dict(dual.state_dict())
    for ours, theirs in zip(model(images), dual(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@torch.no_grad()
def test_the_path_affine_by_hand():
    model = make_small("lsn-navon").double()
    head = model.fine.head
    images = make_images(model, 5, torch.float64)
    plain = model(images)[1]
    limit = model.last_scores["fine"].median().item()
    torch.nn.init.normal_(head.path.weight)
    torch.nn.init.normal_(head.path.bias)
    seen, normed = [], []
    handles = [
        head.classifier.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        head.norm.register_forward_hook(lambda _, args, y: normed.append(y.clone())),
    ]
    logits = model(images, thresholds=limit)[1]
    for handle in handles:
        handle.remove()
    gates = model.last_gates["fine"].double()
    assert 0 < gates.mean() < 1 and not torch.equal(logits, plain)
    affine = torch.nn.functional.linear(gates, head.path.weight, head.path.bias)
    gamma, beta = affine.split(model.fine.channels, 1)
    torch.testing.assert_close(seen[0], (1 + gamma) * normed[0].relu().mean((2, 3)) + beta)


def test_the_path_carries_gradients_to_the_gates():
    model = make_small("lsn-navon").train()
    torch.nn.init.normal_(model.coarse.head.path.weight)
    gate = model.coarse.blocks[-1].gates[-1]
    for parameter in model.coarse.blocks[-1].layers[-1].parameters():
        torch.nn.init.zeros_(parameter)  # the layer's own output says nothing, so that only the path can
    model(make_images(model, 4))[0].square().sum().backward()
    assert gate.linear.bias.grad.abs() > 0


@torch.no_grad()
def test_dense_equivalent_takes_the_open_path():
    model = make_small("lsn-concat-bc-100")
    torch.nn.init.normal_(model.fine.head.path.weight)
    open_gates(model)
    images = make_images(model, 2)
    torch.testing.assert_close(model(images), model.dense_equivalent()(images))


def test_ranking_loss_by_hand():
    losses = torch.tensor([3.0, 1.0, 1.0], requires_grad=True)
    multipliers = torch.tensor([[1.0, 0.0], [1.0, 0.6], [0.0, 0.0]], requires_grad=True)
    fractions = [0.5, 0.8, 0.0]  # pairs (harder, easier): (0, 1), (0, 2)
    expected = (max(0, fractions[1] - fractions[0] + 0.6) + max(0, fractions[2] - fractions[0] + 0.6)) / 2
    loss = ranking_loss(losses, multipliers, 0.6)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert losses.grad is None
    torch.testing.assert_close(multipliers.grad, torch.tensor([[-0.5, -0.5], [0.25, 0.25], [0.25, 0.25]]))
    assert ranking_loss(torch.ones(3), multipliers, 0.1) == 0


@pytest.mark.long
def test_training_with_and_without_the_ranking_loss(tmp_path):
    weights = []
    for name, table in (("on", "[lsn]\nranking = 5.0\nmargin = 0.5"), ("off", "[lsn]\nranking = 0.0")):
        (tmp_path / f"{name}.toml").write_text(RECIPE + table)
        weights.append(dsn_models.load(train(tmp_path / f"{name}.toml", None, tmp_path / name, progress=False)))
    gates = [model.fine.blocks[0].gates[0].linear.weight for model in weights]
    assert not torch.equal(*gates)


@pytest.mark.long
def test_training_begins_with_a_dual_skipping_network(tmp_path):
    path = dsn_models.save(make_small("dsn-navon", block_layers=(1, 1, 1)), tmp_path / "dsn.safetensors")
    recipe = tmp_path / "tiny.toml"
    text = RECIPE.replace('"lsn-navon"', f'"lsn-navon"\ninit = "{path}"').replace("lr = 0.05", "lr = 1e-12")
    before = dsn_models.load(path)
    for guide in ("false", "true"):
        recipe.write_text(text.replace("[options]", f"[options]\nguide = {guide}"))
        after = dsn_models.load(train(recipe, None, tmp_path / guide, progress=False))
        torch.testing.assert_close(after.stem.weight, before.stem.weight)
    grown = after.fine.transitions[-1].conv.weight
    assert grown[:, 24:].abs().max() < 1e-6 and grown.shape[1] == 24 + after.coarse.channels
    recipe.write_text(text.replace("[1, 1, 1]", "[1, 1, 2]"))
    with pytest.raises(UserError, match=r"tensor .* is \[\d+\], the model's \[\d+\]"):
        train(recipe, None, tmp_path / "other", progress=False)


def test_an_unknown_key_of_its_table_is_named(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE + "[lsn]\nrank = 1.0\n")
    with pytest.raises(UserError, match="unknown key 'lsn.rank'"):
        train(tmp_path / "tiny.toml", None, tmp_path / "out", progress=False)
