import copy

import pytest
import torch
from small_recipes import SKIPNET
from torch import nn

import dsn_models
from dsn_models import UserError, checkpoints
from dsn_models.skipnet import UNITS
from dsn_models.training import load_recipe, train
from dsn_models.training.objectives import make_objective
from dsn_models.training.objectives.skipnet import gate_rewards, sample
from dsn_models.training.recipe import Recipe, tomllib

TINY = tomllib.loads(SKIPNET)
OPTIONS = TINY["options"]


def make_recipe(name="tiny", init=None, skipping=None, **train_options):
    changes = {"name": name, "init": init, "skipping": skipping or {}, "train": {**TINY["train"], **train_options}}
    return Recipe.model_validate({**TINY, **changes})


def batch_of(model, count=8):
    images = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    return images, {"fine": torch.arange(count) % 10, "coarse": torch.arange(count) % 2}


@pytest.mark.long
def test_backbone_then_supervised_then_reinforced(tmp_path):
    dense = train(dense_recipe(), None, tmp_path, progress=False)
    supervised = make_recipe("sp", init=str(dense), skipping={"begin": "open"})
    first = train(supervised, None, tmp_path, progress=False)
    reinforced = make_recipe("hrl", init=str(first), skipping={"stage": "reinforce"}, lr=1e-4)
    second = train(reinforced, None, tmp_path, progress=False)
    results = checkpoints.read_metadata(second)["test"]["fine"]
    assert set(results) == {"accuracy", "top5", "skipped", "ran", "units", "macs", "macs_saved"}
    assert results["units"] == pytest.approx((1 + sum(results["ran"])) / 6)
    assert 0 <= results["skipped"] <= 1 and len(results["ran"]) == 5
    before, after = dsn_models.load(first).state_dict(), dsn_models.load(second).state_dict()
    for key in before:
        frozen = key.startswith("gates.5.") or "running" in key or "num_batches" in key
        assert torch.equal(before[key], after[key]) == frozen, key


def dense_recipe():
    content = make_recipe("dense").model_dump(exclude_defaults=True) | {"model": "resnet-38"}
    content["options"] = {**OPTIONS, "shortcut": "projection"}
    return Recipe.model_validate(content)


@pytest.mark.long
def test_the_order_is_explained(tmp_path):
    reinforce = {"stage": "reinforce"}
    with pytest.raises(UserError, match="starts from a SkipNet trained by stage 'supervised'; set init to it; none"):
        train(make_recipe(skipping=reinforce), None, tmp_path / "out")
    backbone = dsn_models.create("resnet-38", **OPTIONS, shortcut="projection")
    path = dsn_models.save(backbone, tmp_path / "backbone.safetensors")
    with pytest.raises(UserError, match="set init to it; init is a ResNet"):
        train(make_recipe(init=str(path), skipping=reinforce), None, tmp_path / "out")


def test_a_start_of_other_classes_keeps_all_but_its_classifier(tmp_path):
    other = dsn_models.create("skipnet-38-rnn", classes=7, **OPTIONS)
    path = dsn_models.save(other, tmp_path / "seven.safetensors")
    model = dsn_models.create("skipnet-38-rnn", **OPTIONS)
    objective = make_objective(make_recipe(init=str(path)), model)
    objective.initialise(model)
    said = "has 7 classes, the recipe 10: head.2.weight, head.2.bias begin anew"
    assert objective.notes == [f"init {path} {said}"]
    before = other.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "head" not in key)


def test_unknown_keys_and_tables_are_named(tmp_path):
    path = tmp_path / "r.toml"
    text = 'name = "x"\nmodel = "skipnet-38-rnn"\ntask = "fine"\n[data]\nkind = "cifar-10"\n[train]\nepochs = 1\n'
    path.write_text(text + "[skipping]\nrewards = 1\n")
    with pytest.raises(UserError, match=r"unknown key 'skipping.rewards' \(given 1\)"):
        load_recipe(path)
    path.write_text(text.replace("skipnet-38-rnn", "resnet-20") + "[skipping]\nalpha = 0.2\n")
    with pytest.raises(UserError, match=r"table \[skipping\] is not for resnet-20, which takes none"):
        make_objective(load_recipe(path), dsn_models.create("resnet-20"))


def test_gate_rewards_by_hand():
    gates, entropy = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]), torch.tensor([0.5, 1.0, 2.0])
    expected = torch.empty(3, 4)
    for b in range(3):
        for i in range(4):
            expected[b, i] = 0.1 / 4 * sum(1 - gates[b, j] for j in range(i, 4)) - entropy[b]
    torch.testing.assert_close(gate_rewards(gates, entropy, 0.1), expected)


def test_samples_follow_the_scores():
    torch.manual_seed(0)
    score = torch.tensor([0.0, 1.0, 0.3]).repeat_interleave(4000)
    never, always, some = sample(score).chunk(3)
    assert not never.any() and always.all()
    assert some.mean().item() == pytest.approx(0.3, abs=0.03)
    assert set(some.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_is_the_gradient_by_hand(baseline):
    """Of the scores: - R_i (g_i / p_i - (1 - g_i) / (1 - p_i)) / B; the cross-entropy gives them none."""
    torch.manual_seed(0)
    model = dsn_models.create("skipnet-38-rnn", **OPTIONS).train()
    recipe = make_recipe(init="x", skipping={"stage": "reinforce", "alpha": 0.4, "baseline": baseline})
    images, labels = batch_of(model)
    means = [m.running_mean.clone() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    drawn = []
    model.control.register_forward_hook(lambda module, args, output: drawn.append(output[0]))
    loss, facts = make_objective(recipe, model).loss(model, images, labels, "gated")
    gradient = torch.stack(torch.autograd.grad(loss, drawn), 1)
    scores, gates = model.last_scores[UNITS], model.last_gates[UNITS].float()
    with torch.no_grad():
        logits = model.eval()(images, {UNITS: model.last_gates[UNITS]})
        entropy = nn.functional.cross_entropy(logits, labels["fine"], reduction="none")
        reward = gate_rewards(gates, entropy, 0.4)
        assert facts["reward"] == pytest.approx(reward[:, 0].mean().item(), rel=1e-5)
        if baseline:
            reward = reward - reward.mean(0)
        expected = -reward * (gates / scores - (1 - gates) / (1 - scores)) / len(images)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    after = [m.running_mean for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(a, b) for a, b in zip(means, after, strict=True))


def test_the_penalty_stops_at_the_target():
    torch.manual_seed(0)
    model = dsn_models.create("skipnet-38-rnn", **OPTIONS)
    model.open_gates()
    images, labels = batch_of(model)

    def loss_of(**skipping):
        return make_objective(make_recipe(skipping=skipping), model).loss(model.train(), images, labels, "gated")[0]

    plain = loss_of().item()
    assert loss_of(penalty=2.0, target=0.75).item() == pytest.approx(plain + 2.0 * 0.25, abs=1e-4)
    assert loss_of(penalty=2.0, target=1.0).item() == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("skipping", [{"penalty": 1.0}, {"stage": "reinforce"}])
def test_a_model_can_be_copied_after_a_training_step(skipping):
    model = dsn_models.create("skipnet-38-rnn", **OPTIONS).train()
    objective = make_objective(make_recipe(init="x", skipping=skipping), model)
    objective.loss(model, *batch_of(model), "gated")[0].backward()
    copy.deepcopy(model)
    assert not model.last_scores[UNITS].requires_grad


def test_settled_gates_are_frozen_and_decide_as_in_inference():
    torch.manual_seed(0)
    model = dsn_models.create("skipnet-38-rnn", **OPTIONS).train()
    objective = make_objective(
        make_recipe(epochs=3, settled_epochs=2, iterations=None, skipping={"penalty": 5.0}), model
    )
    assert [(p.name, p.length) for p in objective.phases()] == [("gated", 1), ("settled", 2)]
    images, labels = batch_of(model)
    objective.begin_epoch(model, None, "settled", 1)
    loss, _ = objective.loss(model, images, labels, "settled")
    loss.backward()
    assert all((p.grad is None) == key.startswith(("gates", "control")) for key, p in model.named_parameters())
    objective.begin_epoch(model, None, "gated", 2)
    assert model.control.proj.weight.requires_grad and not model.gates[-1].weight.requires_grad


@pytest.mark.long
def test_held_gates_go_back_to_their_target():
    torch.manual_seed(0)
    model = dsn_models.create("skipnet-38-rnn", **OPTIONS).train()
    model.open_gates()
    settings = {"recentre": True, "target": 0.6}
    objective = make_objective(make_recipe(epochs=1, settled_epochs=1, iterations=None, skipping=settings), model)
    model.learn_gates(False)
    images, labels = batch_of(model, 32)
    opened = []
    for _ in range(60):
        objective.loss(model, images, labels, "settled")
        opened.append(model.last_gates[UNITS].float().mean().item())
    assert opened[0] == 1
    assert sum(opened[-20:]) / 20 == pytest.approx(0.6, abs=0.1)
