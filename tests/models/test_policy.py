"""The options of ``[policy]``: each term on gates whose right answer is known, and trainings that use them."""

import json
import math

import pytest
import torch
from small_recipes import DSN, GATERNET, GUNN, LSN, SKIPNET
from torch.distributions import Beta

import dsn_models
from dsn_models import UserError
from dsn_models.checkpoints import read_metadata
from dsn_models.gates import PooledGate, noisy, set_noise
from dsn_models.training import Recipe, load_recipe, train
from dsn_models.training.losses import batch_shaping_loss, class_information, distillation_loss, information
from dsn_models.training.objectives import make_objective
from dsn_models.training.policy import Policy
from tests.networks import make_images, make_small


def test_information():
    same = torch.full((6, 3), 0.4)
    assert information(same).item() == pytest.approx(0, abs=1e-6)
    halves = torch.tensor([0.0, 1.0]).repeat(3)[:, None]
    assert information(halves).item() == pytest.approx(math.log(2), abs=1e-4)
    assert information(torch.cat([halves, same[:, :1]], 1)).item() == pytest.approx(math.log(2) / 2, abs=1e-4)


def test_class_information():
    labels = torch.tensor([0, 0, 3, 3])  # classes 1 and 2 have no image
    told = torch.tensor([0.0, 0, 1, 1])[:, None].repeat(1, 3)
    within = torch.tensor([0.0, 1, 0, 1])[:, None].repeat(1, 3)
    assert class_information(told, labels).item() == pytest.approx(math.log(2), abs=1e-4)
    assert class_information(within, labels).item() == pytest.approx(0, abs=1e-4)
    assert information(within).item() == pytest.approx(math.log(2), abs=1e-4)
    scores = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    torch.autograd.gradcheck(lambda p: class_information(p, labels), scores)


def test_information_drives_images_apart():
    scores = torch.tensor([[0.4], [0.6]], requires_grad=True)
    information(scores).backward()
    assert scores.grad[0] < 0 < scores.grad[1]


def test_batch_shaping_is_least_at_the_prior():
    places = torch.arange(1, 100) / 100
    at_prior = (1 - (1 - places) ** (1 / 0.4)) ** (1 / 0.6)
    assert batch_shaping_loss(at_prior[torch.randperm(99), None]).item() == pytest.approx(0, abs=1e-6)
    for other in (torch.full((99,), 0.5), torch.zeros(99), torch.ones(99)):
        assert batch_shaping_loss(other[:, None]) > 0.02


def test_the_prior_is_close_to_beta():
    """Kumaraswamy's distribution function is within 0.04 of Beta(0.6, 0.4)'s, which is drawn."""
    torch.manual_seed(0)
    draws = Beta(0.6, 0.4).sample((20000,)).sort().values
    assert (1 - (1 - draws**0.6) ** 0.4 - torch.arange(20000) / 20000).abs().max() < 0.04


def test_distillation():
    ours, theirs = torch.randn(4, 5), torch.randn(4, 5)
    expected = 9 * (theirs / 3).softmax(1) * ((theirs / 3).log_softmax(1) - (ours / 3).log_softmax(1))
    torch.testing.assert_close(distillation_loss(ours, theirs, 3.0), expected.sum(1).mean())
    assert distillation_loss(theirs, theirs, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_noise_of_scale_one_draws_with_the_score():
    torch.manual_seed(0)
    score = torch.tensor([0.1, 0.5, 0.9]).repeat_interleave(4000)
    opened = (noisy(score, 1.0) > 0.5).float().view(3, -1).mean(1)
    torch.testing.assert_close(opened, torch.tensor([0.1, 0.5, 0.9]), atol=0.03, rtol=0)
    assert noisy(score, 0.0) is score


def test_a_binary_gate_decides_as_in_inference_and_learns():
    gate = PooledGate(3)
    pooled = torch.randn(8, 3)
    gate.binary = True
    taken = gate(pooled)
    assert torch.equal(taken != 0, gate.score(pooled) > 0.5)
    taken.sum().backward()
    score = gate.logit(pooled).sigmoid().detach()
    torch.testing.assert_close(gate.linear.bias.grad[0], (score * (1 - score)).sum())


def test_what_a_binary_gate_did_is_what_is_told():
    model = make_small("dsn-navon").train()
    for gate in model.modules():
        if isinstance(gate, PooledGate):
            gate.binary = True
    set_noise(model, 5.0)
    seen = []
    model.coarse.blocks[0].gates[1].register_forward_hook(lambda m, args, out: seen.append(out.detach() != 0))
    torch.manual_seed(0)
    model(make_images(model, 16))
    assert torch.equal(model.last_gates["coarse"][:, 1].bool(), seen[0]) and 0 < seen[0].sum() < 16


def test_noise_reaches_the_decisions_of_a_skipnet_in_training_only():
    model = make_small("skipnet-38-rnn")
    set_noise(model, 20.0)
    images = make_images(model, 16)
    with torch.no_grad():
        model(images)
        assert len(model.last_gates["units"].unique(dim=0)) < 4
        model.train()(images)
    assert len(model.last_gates["units"].unique(dim=0)) == 4


def recipe(text, policy, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(text + policy)
    return load_recipe(path)


def test_the_cost_is_in_macs_and_its_target_falls(tmp_path):
    policy = "[policy]\ncost = 10.0\ntarget = 0.2\ntarget_end = 0.5\n"
    settings = recipe(DSN, policy, tmp_path)
    model = dsn_models.create(settings.model, **settings.options)
    terms = Policy(settings, model)
    ones = {name: torch.ones(4, count, requires_grad=True) for name, count in model.gate_counts.items()}
    images = torch.zeros(4, 1, 16, 16)
    macs = terms.macs
    share = (macs.executed(ones)[0] / macs.dense).item()
    assert share == pytest.approx(1, abs=0.01)
    for progress, target in ((0.0, 1.0), (0.25, 0.6), (0.5, 0.2), (1.0, 0.2)):
        loss, facts = terms.loss(ones, ones, {}, images, progress)
        assert loss.item() == pytest.approx(10 * max(share - target, 0) ** 2, rel=1e-4)
        assert facts["macs"] == pytest.approx(share)
    loss.backward()
    gradient = ones["fine"].grad[0].double()
    torch.testing.assert_close(gradient / gradient[0], macs.gates["fine"] / macs.gates["fine"][0], rtol=1e-4, atol=0)


def test_a_target_per_image_leaves_no_image_above_it(tmp_path):
    """Of two images, one above the target and one below it by as much, the batch pays nothing and the image does."""
    losses = {}
    for per in ("batch", "image"):
        policy = f'[policy]\ncost = 10.0\ntarget = 0.5\ntarget_end = 0.1\nper = "{per}"\n'
        settings = recipe(DSN, policy, tmp_path)
        terms = Policy(settings, dsn_models.create(settings.model, **settings.options))
        macs = terms.macs
        share = (0.5 * macs.dense - macs.fixed) / sum(m.sum().item() for m in macs.gates.values())
        gates = {n: torch.tensor([[share - 0.1], [share + 0.1]]).expand(-1, len(m)) for n, m in macs.gates.items()}
        losses[per] = terms.loss(gates, gates, {}, torch.zeros(2, 1, 16, 16), 1.0)[0].item()
        over = 0.1 * sum(m.sum().item() for m in macs.gates.values()) / macs.dense
    assert losses == {"batch": pytest.approx(0, abs=1e-6), "image": pytest.approx(10 * over**2 / 2, rel=1e-3)}


def costs_file(tmp_path, **changes):
    content = {"fixed": 2.0, "gates": {"coarse": [1.0, 2.0, 3.0], "fine": [0.0, 1.0, 1.0]}, **changes}
    (tmp_path / "costs.json").write_text(json.dumps(content))
    return tmp_path / "costs.json"


def test_measured_costs_stand_for_macs(tmp_path):
    policy = f'[policy]\ncost = 1.0\ntarget = 0.2\ntarget_end = 0.1\ncosts = "{costs_file(tmp_path)}"\n'
    settings = recipe(DSN, policy, tmp_path)
    model = dsn_models.create(settings.model, **settings.options)
    gates = {name: torch.ones(4, 3, requires_grad=True) for name in ("coarse", "fine")}
    loss, facts = Policy(settings, model).loss(gates, gates, {}, torch.zeros(4, 1, 16, 16), 1.0)
    assert loss.item() == pytest.approx(0.64) and facts["latency"] == pytest.approx(1)
    assert facts["macs"] == pytest.approx(1, abs=0.01)
    loss.backward()
    torch.testing.assert_close(gates["coarse"].grad[0] / gates["coarse"].grad[0, 0], torch.tensor([1.0, 2.0, 3.0]))
    assert gates["fine"].grad[0, 0] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gates": {"coarse": [1.0, 2.0]}}, "has the costs of {'coarse': 2} gates; the model has"),
        ({"gates": {"coarse": [1.0, 2.0, -1.0], "fine": [1.0] * 3}}, "a cost that is negative or not finite"),
        ({"gates": [1.0]}, "holds no costs of gates"),
        ({"fixed": 0, "gates": {"coarse": [0.0] * 3, "fine": [0.0] * 3}}, "says that the network costs nothing"),
    ],
)
def test_costs_that_do_not_fit(changes, said, tmp_path):
    settings = recipe(DSN, f'[policy]\ncosts = "{costs_file(tmp_path, **changes)}"\n', tmp_path)
    with pytest.raises(UserError, match=said):
        Policy(settings, dsn_models.create(settings.model, **settings.options))


def test_costs_that_are_not_there(tmp_path):
    settings = recipe(DSN, '[policy]\ncosts = "absent.json"\n', tmp_path)
    with pytest.raises(UserError, match="absent.json holds no costs of gates"):
        Policy(settings, dsn_models.create(settings.model, **settings.options))


@pytest.mark.parametrize("text", [DSN, LSN, SKIPNET, GATERNET])
def test_gates_at_a_rate_of_their_own(text, tmp_path):
    settings = recipe(text, "[policy]\ngate_lr = 3.0\n", tmp_path)
    model = dsn_models.create(settings.model, **settings.options)
    groups = make_objective(settings, model).parameter_groups(model)
    fast = [p for group in groups if group.get("lr_factor") == 3 for p in group["params"]]
    assert {id(p) for p in fast} == {id(p) for p in model.gate_parameters()} and fast
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_a_gaternet_keeps_its_own_noise_unless_it_is_given_one(tmp_path):
    for policy, scale, binary in (("cost = 1.0", 1.0, False), ("noise = 2.0\nbinary = true", 1.0, True)):
        settings = recipe(GATERNET, f"[policy]\n{policy}\nnoise_end = 1.0\n", tmp_path)
        model = dsn_models.create(settings.model, **settings.options)
        Policy(settings, model).begin_step(model, 0.5)
        assert (model.gate.noise, model.gate.binary) == (scale, binary)
    assert set(model.gate.train()(torch.randn(6, 9)).unique().tolist()) <= {0.0, 1.0}


def test_noise_ends(tmp_path):
    settings = recipe(DSN, "[policy]\nnoise = 2.0\nnoise_end = 0.5\nbinary = true\n", tmp_path)
    model = dsn_models.create(settings.model, **settings.options)
    terms, gate = Policy(settings, model), model.fine.blocks[0].gates[0]
    for progress, scale in ((0.0, 2.0), (0.25, 1.0), (0.5, 0.0), (0.9, 0.0)):
        terms.begin_step(model, progress)
        assert gate.noise == pytest.approx(scale) and gate.binary


PHASES = "epochs = 3\nungated_epochs = 1\nsettled_epochs = 1"
ALL = """
[policy]
noise = 1.0
cost = 20.0
target = 0.5
target_end = 0.2
information = 0.1
ranking = 0.2
depth = 0.1
shaping = 0.1
distillation = 0.5
teacher = "{teacher}"
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "extra"),
    [
        (DSN.replace("[options]", "[options]\ngate_norm = true"), "binary = true\n"),
        (LSN, "binary = true\n"),
        (SKIPNET.replace("[options]", '[options]\nshortcut = "pad"').replace("iterations = 4", PHASES), ""),
        (GATERNET.replace("epochs = 2", "epochs = 3\nungated_epochs = 1"), "gate_lr = 2.0\nper = 'image'\n"),
    ],
)
def test_a_training_with_all_of_it(text, extra, tmp_path):
    if "gaternet" not in text:
        text = text.replace("[train]", '[train]\ncompute = "selected"')
    plain = recipe(text, "", tmp_path)
    torch.manual_seed(1)
    teacher = dsn_models.save(dsn_models.create(plain.model, **plain.options), tmp_path / "teacher.safetensors")
    path = train(recipe(text, ALL.format(teacher=teacher) + extra, tmp_path), None, tmp_path / "out", progress=False)
    facts = read_metadata(path)
    assert facts["recipe"]["policy"]["cost"] == 20 and facts["images_seen"] > 0
    assert all(p.isfinite().all() for p in dsn_models.load(path).parameters())


def test_the_teachers_answers_are_part_of_the_loss(tmp_path):
    torch.manual_seed(0)
    model = dsn_models.create("dsn-navon", image_size=16, block_layers=(1, 1, 1))
    teacher = dsn_models.save(model, tmp_path / "teacher.safetensors")
    policy = f'[policy]\ndistillation = 1.0\nteacher = "{teacher}"\ntemperature = 1.0\n'
    terms = Policy(recipe(DSN, policy, tmp_path), model)
    images = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        same = model.eval().dense_equivalent()(images)
        ones = {name: torch.ones(4, count) for name, count in model.gate_counts.items()}
        labels = torch.zeros(4, dtype=torch.int64)
        served = dict(zip(("coarse", "fine"), ((logits, labels) for logits in same), strict=True))
        assert terms.loss(ones, ones, served, images, 0.0)[0].item() == pytest.approx(0, abs=1e-5)
        other = {name: (torch.zeros(4, 10), labels) for name in served}
        assert terms.loss(ones, ones, other, images, 0.0)[0] > 0.001


def test_ranking_is_of_macs_and_wants_more_for_what_is_harder(tmp_path):
    settings = recipe(DSN, "[policy]\nranking = 3.0\nmargin = 0.1\n", tmp_path)
    model = dsn_models.create(settings.model, **settings.options)
    terms = Policy(settings, model)
    shares = terms.macs.gates["fine"] / terms.macs.gates["fine"].sum()
    gates = {"coarse": torch.ones(2, 3), "fine": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)}
    labels, alike = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 10)
    served = {"coarse": (alike, labels), "fine": (torch.eye(10)[:2] * 5, labels)}  # the second image is the harder one
    loss, _ = terms.loss(gates, gates, served, torch.zeros(2, 1, 16, 16), 0.0)
    assert loss.item() == pytest.approx(3 * max(0.1 + shares[0].item() - shares[1].item(), 0), rel=1e-5)
    loss.backward()
    assert gates["fine"].grad[0, 0] > 0 > gates["fine"].grad[1, 1]


@pytest.mark.parametrize("text", [DSN, SKIPNET, GATERNET])
def test_layers_are_left_out_at_random_before_the_gates_join(text, tmp_path):
    settings = recipe(text, "[policy]\ndepth = 0.5\n", tmp_path)
    torch.manual_seed(0)
    model = dsn_models.create(settings.model, **settings.options).train()
    labels = {name: torch.zeros(64, dtype=torch.int64) for name in ("coarse", "fine")}
    objective = make_objective(settings, model)
    objective.loss(model, torch.rand(64, 1, 16, 16), labels, "ungated")
    assert all(0.3 < gates.float().mean() < 0.7 for gates in model.last_gates.values())


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("distillation = 1.0", "distillation and teacher belong together"),
        ("target = 0.5", "a target below 1 needs a weight, cost"),
        ("per = 'image'", "per needs a weight, cost"),
        ("pattern = 'a.json'\nnoise = 1.0", "pattern holds the gates, which then learn nothing"),
        ("penalty = 1.0", "unknown key 'policy.penalty'"),
    ],
)
def test_options_that_do_not_fit(policy, said, tmp_path):
    with pytest.raises(UserError, match=said):
        recipe(DSN, f"[policy]\n{policy}\n", tmp_path)


PATTERNS = [
    (DSN, {"coarse": [1, 0, 1], "fine": [0, 1, 1]}),
    (LSN.replace("[options]", '[options]\ngate = "soft"'), {"coarse": [1, 0, 1], "fine": [0, 1, 1]}),
    (SKIPNET.replace("iterations = 4", "epochs = 2\nungated_epochs = 1"), {"units": [1, 0, 0, 1, 1]}),
    (GATERNET, {"filters": [1, 0] * 56}),
]


@pytest.mark.long
@pytest.mark.parametrize(("text", "pattern"), PATTERNS)
@pytest.mark.parametrize("form", ["eval", "plain"])
def test_gates_held_at_one_pattern_for_all_images(text, pattern, form, tmp_path):
    content = {"images": 3, "controls": {"static_pattern": pattern}} if form == "eval" else pattern
    (tmp_path / "pattern.json").write_text(json.dumps(content))
    path = train(recipe(text, f'[policy]\npattern = "{tmp_path / "pattern.json"}"\n', tmp_path), None, tmp_path / "out")
    model = dsn_models.load(path)
    images = torch.rand(5, 1, 16, 16)
    model(images)
    assert {name: gates.tolist() for name, gates in model.last_gates.items()} == {
        n: [p] * 5 for n, p in pattern.items()
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"coarse": [1, 0], "fine": [1, 1, 1]}', "has a pattern of {'coarse': 2, 'fine': 3} gates; expected 0 or 1"),
        ('{"coarse": [1, 0, 2], "fine": [1, 1, 1]}', "expected 0 or 1 for each"),
        ("[1, 0]", "holds no pattern of gates"),
        ("{", "holds no pattern of gates"),
        (None, "holds no pattern of gates"),
    ],
)
def test_a_pattern_that_does_not_fit(content, said, tmp_path):
    if content is not None:
        (tmp_path / "pattern.json").write_text(content)
    settings = recipe(DSN, f'[policy]\npattern = "{tmp_path / "pattern.json"}"\n', tmp_path)
    with pytest.raises(UserError, match=said):
        Policy(settings, dsn_models.create(settings.model, **settings.options))


@pytest.mark.parametrize(
    ("key", "value"), [("ungated_epochs", 1), ("settled_epochs", 1), ("gated_lr", 0.1), ("settled_lr", 0.1)]
)
def test_a_phase_of_another_family_is_refused(key, value, tmp_path):
    text = GUNN.replace("iterations = 6", f"epochs = 3\n{key} = {value}").replace(
        "milestones = [4]", "milestones = [1]"
    )
    settings = recipe(text, "", tmp_path)
    with pytest.raises(UserError, match=f"train.{key} is not for gunn-15, which has one phase"):
        make_objective(settings, dsn_models.create(settings.model, **settings.options))


def test_reinforcement_takes_no_policy(tmp_path):
    settings = recipe(SKIPNET, '[skipping]\nstage = "reinforce"\n[policy]\ncost = 1.0\n', tmp_path)
    settings = settings.model_copy(update={"init": "some.safetensors"})
    with pytest.raises(UserError, match=r"\[policy\] is for stage 'supervised'"):
        make_objective(settings, dsn_models.create(settings.model, **settings.options)).initialise(None)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    teacher = dsn_models.save(
        dsn_models.create("dsn-navon", image_size=16, block_layers=(1, 1), classes=(3, 4)), tmp_path / "t.safetensors"
    )
    settings = recipe(DSN, f'[policy]\ndistillation = 1.0\nteacher = "{teacher}"\n', tmp_path)
    with pytest.raises(UserError, match=r"has \(3, 4\) classes; the model has \(10, 10\)"):
        Policy(settings, dsn_models.create(settings.model, **settings.options))


def test_the_table_is_for_families_with_such_gates(tmp_path):
    model = make_small("gunn-15")
    settings = Recipe.model_validate(
        {
            "name": "x", "model": "gunn-15", "task": "fine", "data": {"kind": "navon-sklearn"}, "train": {"epochs": 1},
            "policy": {"cost": 1.0},
        }
    )  # fmt: skip
    with pytest.raises(UserError, match=r"table \[policy\] is not for gunn-15"):
        make_objective(settings, model)
