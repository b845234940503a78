"""Recipes, losses, and runs that stop and go on."""

import json
import math

import pytest
import torch
from small_recipes import DSN as TINY

import dsn_models
from dsn_models import UserError
from dsn_models.checkpoints import read_metadata
from dsn_models.data import CoarseFineDataset, navon
from dsn_models.training import Recipe, evaluate, load_recipe, loop, recipe_names, schedule, train
from dsn_models.training.losses import GateRecorder, auxiliary_loss, freeze_gates, open_gates, sparsity_loss
from dsn_models.training.objectives import Phase, make_objective
from tests.networks import make_images, make_small


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def run(recipe, out, **options):
    return train(recipe, None, out, progress=False, **options)


def test_a_run_writes_checkpoint_state_and_log(recipe, tmp_path):
    path = run(recipe, tmp_path / "out")
    assert path == tmp_path / "out" / "tiny.safetensors"
    model = dsn_models.load(path)
    assert model.coarse.blocks[0].gates[0].slope == 3.0
    facts = read_metadata(path)
    assert facts["images_seen"] == 96
    assert facts["recipe"]["train"]["epochs"] == 3
    assert 0 <= facts["test"]["coarse"]["skipped"] <= 1
    assert any((tmp_path / "out" / "tensorboard").iterdir())
    assert facts["test"] == evaluate(model, navon.from_sklearn(False, 20, canvas=16, glyph=4))


class Interrupt:
    """Ctrl-C after so many optimiser steps."""

    def __init__(self, steps):
        self.left = steps
        self.step = torch.optim.SGD.step

    def __call__(self, optimiser, *args):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.step(optimiser, *args)


@pytest.mark.long
@pytest.mark.parametrize("steps", [2, 6, 9])
def test_interrupted_and_resumed_is_as_if_nothing_happened(recipe, tmp_path, monkeypatch, steps):
    whole = dsn_models.load(run(recipe, tmp_path / "whole")).state_dict()
    with monkeypatch.context() as patch:
        interrupt = Interrupt(steps)
        patch.setattr(torch.optim.SGD, "step", lambda *args: interrupt(*args))
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "parts")
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    torch.randn(5)
    resumed = dsn_models.load(run(recipe, tmp_path / "parts")).state_dict()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


@pytest.mark.long
def test_resume_refuses_another_recipe_and_a_damaged_state(recipe, tmp_path):
    run(recipe, tmp_path)
    recipe.write_text(TINY.replace("lr = 0.05", "lr = 0.01"))
    with pytest.raises(UserError, match="belongs to another recipe or an edited one"):
        run(recipe, tmp_path)
    state = tmp_path / "tiny.state"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match="is no training state, or cut short"):
        run(recipe, tmp_path)
    run(recipe, tmp_path, resume=False)


@pytest.mark.long
def test_fine_tuning_begins_with_a_checkpoint(recipe, tmp_path):
    first = run(recipe, tmp_path / "first")
    text = TINY.replace('"dsn-navon"', f'"dsn-navon"\ninit = "{first}"').replace("lr = 0.05", "lr = 1e-12")
    text = text.replace("ungated_epochs = 1", "").replace("[gates]", "[gates]\nbegin = 'kept'\nslope = 9.0")
    recipe.write_text(text)
    before = dsn_models.load(first).state_dict()
    after = dsn_models.load(run(recipe, tmp_path / "second")).state_dict()
    for key in ("stem.weight", "coarse.blocks.1.gates.0.linear.weight"):
        torch.testing.assert_close(after[key], before[key])
    assert after["coarse.blocks.0.gates.0.slope"] == 13.0
    recipe.write_text(text.replace("[1, 1, 1]", "[1, 1]"))
    with pytest.raises(UserError, match="init .* \\(dsn-navon\\) has a tensor coarse.* the model has no place"):
        run(recipe, tmp_path / "third")


def test_a_start_of_other_classes_or_of_another_network_is_refused():
    objective = make_objective(load_recipe("sb-mnist"), make_small("dsn-navon"))
    model = make_small("dsn-navon")
    with pytest.raises(UserError, match=r"has \(10, 7\) classes, the recipe's model \(10, 10\); set options.classes"):
        objective.start_from(model, make_small("dsn-navon", classes=(10, 7)))
    with pytest.raises(UserError, match=r"\(concat-40\) has no tensor coarse"):
        objective.start_from(model, make_small("concat-40", classes=(10, 10)))


@pytest.mark.long
def test_settled_gates_keep_their_weights_and_decide_as_in_inference(recipe, tmp_path):
    first = run(recipe, tmp_path / "first")
    text = TINY.replace('"dsn-navon"', f'"dsn-navon"\ninit = "{first}"').replace(
        "ungated_epochs = 1", "settled_epochs = 3"
    )
    recipe.write_text(text.replace("[gates]", "[gates]\nbegin = 'kept'"))
    before = dsn_models.load(first).state_dict()
    after = dsn_models.load(run(recipe, tmp_path / "second")).state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if ".gates." in key and "slope" not in key)
    assert not torch.equal(after["stem.weight"], before["stem.weight"])
    model = make_small("dsn-navon").train()
    model(make_images(model, 4))
    learned, images = model.fine.blocks[0], torch.randn(4, 12, 5, 5)
    freeze_gates(model, True)
    out, taken, _ = learned(images)
    assert (out[:, 12:].flatten(1).reshape(4, 3, -1).abs().amax(2) > 0).to(torch.uint8).equal(taken)


@pytest.mark.parametrize("task", ["coarse", "fine"])
def test_a_baseline_trains(recipe, tmp_path, task):
    text = TINY.replace('"dsn-navon"', f'"lenet"\ntask = "{task}"').replace("block_layers = [1, 1, 1]", "")
    text = text.replace("ungated_epochs = 1\n", "")
    recipe.write_text(text.split("[gates]")[0])
    facts = read_metadata(run(recipe, tmp_path))
    assert set(facts["test"]) == {"images", task}


def test_diverging_training_says_so(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda logits, _: logits.sum() * float("nan"))
    with pytest.raises(UserError, match="training diverged in epoch 1: gradient norm nan; lower the lr"):
        run(recipe, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch = 8", "batchsize = 8", "unknown key 'train.batchsize'"),
        ("epochs = 3", "epochs = 0", "key 'train.epochs'"),
        ("epochs = 3", "", "expected epochs or iterations, one of both, key 'train'"),
        (
            "ungated_epochs = 1",
            "ungated_epochs = 9",
            "ungated_epochs 9 and settled_epochs 0 are more than the 3",
        ),
        ("[gates]", "[gate]", "unknown key 'gate'"),
        ('name = "tiny"', 'name = "../x"', "key 'name'"),
        ('name = "tiny"', "name =", "is no TOML"),
        ('model = "dsn-navon"', 'model = "lenet"', "unknown option 'block_layers'"),
        (
            'model = "dsn-navon"\n[options]\nimage_size = 16\nblock_layers = [1, 1, 1]',
            'model = "lenet"\ntask = "fine"\n[options]\nimage_size = 16',
            r"table \[gates\] is not for lenet, which takes none",
        ),
        ('"dsn-navon"', '"dsn-navon"\ntask = "fine"', "task is 'fine'; dsn-navon takes 'both'"),
        ("image_size = 16", "image_size = 16\nclasses = [10, 5]", "the model has 5 fine classes, the data 10"),
        ("canvas = 16", "canvass = 16", "unknown option 'canvass'"),
    ],
)
def test_recipes_with_mistakes(recipe, tmp_path, old, new, said):
    assert old in TINY
    recipe.write_text(TINY.replace(old, new, 1))
    with pytest.raises(UserError, match=said) as caught:
        run(recipe, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_shipped_recipes_are_valid_and_unknown_ones_refused():
    assert {"dsn-navon-digits", "sb-mnist"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    with pytest.raises(UserError, match="no recipe 'nothing'; expected a TOML file or one of"):
        load_recipe("nothing")


def rates(section, steps_per_epoch=4):
    """The learning rate of every step of a run of ``dsn-navon``."""
    recipe = load_recipe("sb-mnist")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=section)})
    objective = make_objective(recipe, make_small("dsn-navon"))
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    found = []
    for span in schedule.spans(objective, steps_per_epoch):
        scheduler = schedule.make_scheduler(optimiser, recipe.train, span, steps_per_epoch)
        for _ in range(span.first, span.last):
            found.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            scheduler.step()
    return found


def test_learning_rate_is_a_cosine_in_each_phase():
    section = {"epochs": 8, "ungated_epochs": 3, "settled_epochs": 2, "lr": 0.1, "gated_lr": 0.05, "settled_lr": 0.01}
    expected = []
    for length, lr in ((12, 0.1), (12, 0.05), (8, 0.01)):
        expected += [lr / 2 * (1 + math.cos(math.pi * i / length)) for i in range(length)]
    assert rates(section) == pytest.approx(expected)


def test_learning_rate_warms_up():
    section = {"epochs": 4, "ungated_epochs": 2, "settled_epochs": 0, "lr": 1.0, "gated_lr": 0.5, "warmup": 3}
    cosine = [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    later = [0.5 * value for value in cosine]
    assert rates(section) == pytest.approx([1 / 3, 2 / 3, 1.0, *cosine[3:], *later])
    assert rates({**section, "warmup_lr": 0.01}) == pytest.approx([0.01] * 3 + cosine[3:] + later)


def test_a_phase_goes_on_at_the_rate_where_it_stopped():
    recipe = load_recipe("sb-mnist")
    span = schedule.Span(Phase("gated", 10, 0.3), 20, 30)
    for section in ({}, {"schedule": "step", "milestones": (5,), "epochs": None, "iterations": 10}):
        train_section = recipe.train.model_copy(update=section)
        found = []
        for done in range(10):
            optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            schedule.make_scheduler(optimiser, train_section, span, 1, done)
            found.append(optimiser.param_groups[0]["lr"])
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        scheduler = schedule.make_scheduler(optimiser, train_section, span, 1)
        for lr in found:
            assert optimiser.param_groups[0]["lr"] == pytest.approx(lr)
            optimiser.step()
            scheduler.step()


def test_a_warm_up_longer_than_its_phase_is_refused(recipe, tmp_path):
    recipe.write_text(TINY.replace("batch = 8", "batch = 8\nwarmup = 5"))
    with pytest.raises(UserError, match="train.warmup is 5 steps; its first phase has 4"):
        run(recipe, tmp_path)


def test_curves_and_gates_that_never_skip(recipe, tmp_path, capsys):
    text = TINY.replace("batch = 8", "batch = 8\ncurve = true").replace("sparsity = 1.0", "sparsity = 0.0")
    recipe.write_text(
        text.replace("slope_step = 2.0", "slope_step = 0.0\nauxiliary = 0.0").replace("lr = 0.05", "lr = 1e-6")
    )
    facts = read_metadata(train(recipe, None, tmp_path / "out"))
    assert len(facts["history"]) == 3 and facts["tested_on"] == "test"
    last = facts["history"][-1]
    assert last["test/fine/accuracy"] == facts["test"]["fine"]["accuracy"] and "fine/loss" in last
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: coarse and fine skipped nothing in any step" in said


def test_who_never_skipped():
    history = [{"coarse/loss": 1.0}, {"coarse/skipped": 0.0, "fine/skipped": 0.0}, {"coarse/skipped": 0.1}]
    assert loop.never_skipped(history) == ["fine"] and loop.never_skipped(history[:1]) == []


def test_top_five():
    """Logits that rank the classes from the image's own on: the label lies among the five likeliest or does not."""

    class Ranked(torch.nn.Module):
        def forward(self, images):
            return -((torch.arange(10) - images[:, 0, 0, :1]) % 10)

    class Pairs(CoarseFineDataset):
        coarse_classes = fine_classes = 10

        def __len__(self):
            return 100

        def batch(self, indices):
            return (indices // 10).view(-1, 1, 1, 1).float(), indices % 10, indices % 10

    found = evaluate(Ranked(), Pairs(), task="fine", batch=7)
    assert found["fine"] == {"accuracy": pytest.approx(0.1), "top5": pytest.approx(0.5)}


def test_learning_rate_falls_in_steps():
    section = {"epochs": 4, "ungated_epochs": 0, "settled_epochs": 0, "lr": 1.0, "gated_lr": None}
    section |= {"schedule": "step", "milestones": (2, 3), "gamma": 0.5}
    assert rates(section) == [1.0] * 8 + [0.5] * 4 + [0.25] * 4
    section |= {"epochs": None, "iterations": 5}
    assert rates(section) == [1.0, 1.0, 0.5, 0.25, 0.25]


@pytest.mark.long
@pytest.mark.parametrize("schedule", ['schedule = "step"\nmilestones = [3, 7]', ""])
def test_a_run_counted_in_iterations_stops_and_goes_on(recipe, tmp_path, monkeypatch, schedule):
    text = TINY.replace("ungated_epochs = 1", schedule).replace("epochs = 3", "iterations = 10\nnesterov = false")
    recipe.write_text(text)
    path = run(recipe, tmp_path / "whole")
    assert read_metadata(path)["images_seen"] == 80
    whole = dsn_models.load(path).state_dict()
    with monkeypatch.context() as patch:
        interrupt = Interrupt(9)
        patch.setattr(torch.optim.SGD, "step", lambda *args: interrupt(*args))
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "parts")
    resumed = dsn_models.load(run(recipe, tmp_path / "parts")).state_dict()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_auxiliary_loss_by_hand():
    logits = [torch.tensor([-1.0, -2.0]), torch.tensor([0.6, 0.9]), torch.tensor([0.1, 3.0])]
    multipliers = [(z + 0.5).clamp(0, 1) for z in logits]
    shut = torch.nn.functional.softplus(-logits[0]).mean()  # -log sigmoid(z): target 1
    opened = torch.nn.functional.softplus(logits[1]).mean()  # -log(1 - sigmoid(z)): target 0
    loss = auxiliary_loss(torch.stack(logits, 1), torch.stack(multipliers, 1))
    torch.testing.assert_close(loss, (shut + opened) / 3)


def test_sparsity_loss_by_hand():
    multipliers = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert sparsity_loss(multipliers, 0.5) == 0.25**2
    assert sparsity_loss(multipliers, 0.8) == 0


def test_recorder_sees_every_gate_and_leaves_no_hook():
    model = make_small("dsn-navon").train()
    images = make_images(model, 2)
    with GateRecorder(model) as recorder:
        model(images)
    model(images)
    assert {k: len(v) for k, v in recorder.multipliers.items()} == {"coarse": 12, "fine": 12}
    assert recorder.logits["fine"][3].requires_grad


@torch.no_grad()
def test_opened_gates_equal_the_dense_network():
    model = make_small("concat-40")
    open_gates(model)
    images = make_images(model, 2)
    torch.testing.assert_close(model(images), model.dense_equivalent()(images))
    assert model.last_scores["coarse"].eq(1).all()


@torch.no_grad()
def test_evaluate_counts():
    model, dataset = make_small("dsn-navon"), navon.from_sklearn(False, 30, canvas=16, glyph=2)
    result = evaluate(model, dataset, batch=7)
    images, coarse, _ = dataset.batch(torch.arange(30))
    logits, _ = model(images)
    assert result["coarse"]["accuracy"] == pytest.approx((logits.argmax(1) == coarse).float().mean().item())
    assert result["fine"]["skipped"] == pytest.approx(1 - model.last_gates["fine"].float().mean().item())
    assert evaluate(model, dataset, gated=False)["fine"]["skipped"] == 0
    assert evaluate(model, dataset, thresholds=1.0)["coarse"]["skipped"] == 1
    json.dumps(result)
