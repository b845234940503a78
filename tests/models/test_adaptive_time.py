"""Adaptive computation time against the paper's sums, its training, its controls, and what its kernels leave out."""

import pytest
import torch
from small_recipes import ACT
from torch import nn

import dsn_kernels
import dsn_models
from dsn_kernels.measure.records import read
from dsn_kernels.report.report import report
from dsn_kernels.tuning.sweep import SweepSettings, sweep
from dsn_models import UserError, checkpoints, selection
from dsn_models.adaptive_time import UNITS
from dsn_models.computation import gate_macs
from dsn_models.controls import controls
from dsn_models.data import open_dataset
from dsn_models.training import train
from dsn_models.training.objectives import make_objective
from dsn_models.training.recipe import Recipe, tomllib
from tests.checks import assert_as_exact_as_torch
from tests.networks import make_images, randomise

RECIPE = tomllib.loads(ACT)
STAGES = (3, 2, 4)


def make(seed=0, **options):
    """Random weights, and scores by which images halt after different units."""
    torch.manual_seed(seed)
    sizes = {"stage_units": STAGES, "stage_widths": (8, 12, 16), "stem_width": 8, "image_size": 16}
    model = randomise(dsn_models.create("act-32", **{**sizes, **options}), seed)
    for score in model.halting:
        nn.init.normal_(score.linear.weight, std=0.5)
        nn.init.zeros_(score.linear.bias)
        score.norm.momentum = 1.0
    model.halting.train()
    model(make_images(model, 16))  # pooled random images differ by little, which the norms take for all there is
    model.eval()
    return model


def by_the_paper(model, images, epsilon=0.01):
    """Logits, gates [B, L] and ponder costs [B]: each image by itself, as section 3.1 has it."""
    logits, gates, costs = [], [], []
    for image in images[:, None]:
        x, taken, ponder, first = model.stem(image), [], 0.0, 0
        for s, count in enumerate(model.config.stage_units):
            outputs, scores = [], []
            for n in range(count):
                x = model.units[first + n](x)
                last = n == count - 1
                outputs.append(x)
                scores.append(torch.ones(()) if last else model.halting[first - s + n](x)[0])
                if sum(scores) >= 1 - epsilon or last:
                    break
            rest = 1 - sum(scores[:-1])
            x = sum(h * out for h, out in zip(scores[:-1], outputs[:-1], strict=True)) + rest * outputs[-1]
            ponder = ponder + len(outputs) + rest
            taken += [1] * (len(outputs) - 1) + [0] * (count - len(outputs))
            first += count
        logits.append(model.head(x))
        gates.append(taken)
        costs.append(ponder if isinstance(ponder, torch.Tensor) else torch.tensor(ponder))
    return torch.cat(logits), torch.tensor(gates), torch.stack([cost.reshape(()) for cost in costs])


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_formula_with_its_gradients(epsilon, training):
    model, patterns = make(threshold=epsilon).double().requires_grad_(), set()
    for module in model.modules():
        module.training = training and not isinstance(module, nn.modules.batchnorm._BatchNorm)
    images = make_images(model, 6, torch.float64)
    for compute in ("masked", "selected"):
        selection.set_compute(model, compute)
        expected, gates, costs = by_the_paper(model, images, epsilon)
        logits, ponder = model.pondered(images)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(ponder, costs)
        assert torch.equal(model.last_gates[UNITS].long(), gates)
        weights = [*model.parameters()]
        wanted = torch.autograd.grad(expected.square().sum() + costs.sum(), weights, allow_unused=True)
        found = torch.autograd.grad(logits.square().sum() + ponder.sum(), weights, allow_unused=True)
        for ours, theirs in zip(found, wanted, strict=True):
            nothing = torch.zeros(())
            torch.testing.assert_close(*((nothing if g is None or not g.any() else g) for g in (ours, theirs)))
        patterns |= {tuple(row) for row in gates.tolist()}
    assert len(patterns) > 2


@torch.no_grad()
def test_gates_that_are_forced_and_thresholds():
    model = make()
    images, count = make_images(model, 4), sum(STAGES) - len(STAGES)
    assert model.gate_counts == {UNITS: count} and model.stage_gates == [2, 1, 3]
    own = model(images)
    torch.testing.assert_close(model(images, forced_gates=model.last_gates), own, rtol=0, atol=0)
    shut = torch.zeros(4, count, dtype=torch.uint8)
    first = model(images, forced_gates={UNITS: shut})
    torch.testing.assert_close(model(images, thresholds=1.0), first, rtol=0, atol=0)
    assert not model.last_gates[UNITS].any()
    fewer = model(images, thresholds={UNITS: 0.5}) is not None and model.last_gates[UNITS].sum()
    assert 0 < fewer < (model(images, thresholds=0.01) is not None and model.last_gates[UNITS].sum())
    fresh = dsn_models.create("act-32")
    fresh.eval()(make_images(fresh, 2))
    assert fresh.last_gates[UNITS].all()  # a network begins by running all of its units
    with pytest.raises(UserError, match=r"threshold is 2; expected a number in \[0, 1\]"):
        model(images, thresholds=2)
    with pytest.raises(UserError, match="stage_units is .1, 1.; expected a stage of two units or more"):
        make(stage_units=(1, 1), stage_widths=(8, 12))


@torch.no_grad()
def test_the_kernels_leave_out_what_comes_after_an_image_has_halted():
    model = make()
    images = make_images(model, 6)
    fast = dsn_kernels.accelerate(model, backend="cpu")
    actual, same = fast(images), model(images)
    assert torch.equal(fast.last_gates[UNITS], model.last_gates[UNITS])
    head = 16 * 10  # torch computes it
    counts = gate_macs(model)
    assert torch.equal(fast.last_macs + head, counts.executed(model.last_gates).long())
    assert len(fast.last_macs.unique()) > 2 and fast.last_macs.max() < counts.dense
    exact = make().double()(images.double())
    assert_as_exact_as_torch(actual, same, exact)
    forced = {UNITS: (torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5).byte()}
    assert_as_exact_as_torch(
        fast(images, forced_gates=forced),
        model(images, forced_gates=forced),
        make().double()(images.double(), forced_gates=forced),
    )
    assert torch.equal(fast.last_macs + head, counts.executed(forced).long())


def recipe(**changes):
    return Recipe.model_validate({**RECIPE, **changes})


@pytest.mark.long
def test_training_begins_with_the_backbone_and_pays_for_what_runs(tmp_path):
    options = {**RECIPE["options"], "shortcut": "pad"}
    start = str(dsn_models.save(dsn_models.create("resnet-32", **options), tmp_path / "dense.safetensors"))
    found = {}
    for ponder in (0.0, 10.0):
        made = recipe(name=f"p{ponder:g}", init=start, halting={"ponder": ponder})
        path = train(made, None, tmp_path, progress=False)
        found[ponder] = checkpoints.read_metadata(path)["test"]["fine"]
    assert set(found[0.0]) == {"accuracy", "top5", "skipped", "ran", "macs", "macs_saved"}
    assert found[0.0]["skipped"] == 0 < found[10.0]["skipped"]
    model = dsn_models.load(path)
    executed = gate_macs(model).executed({UNITS: torch.tensor(found[10.0]["ran"])}).item()
    assert found[10.0]["macs"] == pytest.approx(executed) and found[10.0]["macs_saved"] > 0


def test_tables_of_others_are_refused():
    with pytest.raises(UserError, match=r"table \[policy\] is not for act-32, which takes \[halting\]"):
        make_objective(recipe(policy={"cost": 1.0}), dsn_models.create("act-32"))
    with pytest.raises(UserError, match="train.ungated_epochs is not for act-32, which has one phase"):
        train_options = {"epochs": 2, "ungated_epochs": 1}
        make_objective(recipe(train=train_options), dsn_models.create("act-32"))


@pytest.mark.long
def test_a_report_leaves_out_the_sweep_and_a_sweep_is_refused():
    dataset = open_dataset("navon-sklearn", None, False, 40, canvas=16, glyph=4)
    model = make(in_channels=1)
    data = read(dataset, "fine")
    assert controls(model, dataset, task="fine")["images"] == 30
    document = report(model, "act", data, batches=(1,), seconds=0.0, cards=2).document
    assert [len(stage) for stage in document["ran"][UNITS]] == [2, 1, 3] and "sweep" not in document
    with pytest.raises(UserError, match="torch decides the gates of act, between the kernels"):
        sweep(model, "act", data, SweepSettings(steps=1, seconds=0.0))
