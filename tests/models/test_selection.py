"""Parts that compute only the images that run them, against the masked form."""

import copy

import pytest
import torch
from small_recipes import DSN
from torch import nn

from dsn_models import UserError
from dsn_models.selection import run_gated, set_compute
from dsn_models.training import train
from tests.networks import make_images, make_small

NETWORKS = ["dsn-navon", "concat-bc-100", "add-166", "lsn-navon", "skipnet-38-rnn", "skipnet-38-ff"]


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def in_training(name, compute, *, norms_in_eval=True):
    """A float64 model whose gates decide differently for different images, in training mode."""
    model = make_small(name).double().train()
    for norm in norms(model) if norms_in_eval else ():
        norm.eval()
    set_compute(model, compute)
    return model


def some_gates(model, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draws = {n: torch.randint(0, 2, (batch, k), generator=generator) for n, k in model.gate_counts.items()}
    return {name: gates.to(torch.uint8) for name, gates in draws.items()}


def loss_of(outputs):
    return sum(out.square().sum() for out in ([outputs] if isinstance(outputs, torch.Tensor) else outputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_mask(name):
    gradients, outputs = [], []
    for compute in ("masked", "selected"):
        model = in_training(name, compute)
        images = make_images(model, 6, torch.float64).requires_grad_()
        out = model(images, some_gates(model, 6))
        loss_of(out).backward()
        outputs.append(out)
        gradients.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None} | {"": images.grad})
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    assert gradients[0].keys() == gradients[1].keys()
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("multipliers", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_gate_learns_from_the_images_that_run(multipliers, zeros):
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3).eval(), nn.ReLU()).double()
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    values = torch.tensor([0.2, 0.0, 0.9, 0.0, 0.5] if multipliers else [1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    found = []
    for compute in ("masked", "selected"):
        gate = values.clone().requires_grad_()
        out = run_gated(part, part, (images,), gate, None if zeros else images, compute)
        out.square().sum().backward()
        found.append((out.detach(), gate.grad))
    torch.testing.assert_close(found[1][0], found[0][0])
    shut = values == 0
    torch.testing.assert_close(found[1][1][~shut], found[0][1][~shut])
    assert (found[1][1][shut] == 0).all() and found[0][1][~shut].abs().min() > 0


def test_gradcheck_where_every_gate_is_between():
    torch.manual_seed(0)
    part = nn.Conv2d(2, 2, 3, padding=1).double()
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    gate = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, g: run_gated(part, part, (x,), g, x, "selected"), (images, gate))


class Counting(nn.Module):
    """Doubles its input and remembers how many images it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return 2 * x


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("compute", ["masked", "selected"])
@pytest.mark.parametrize("open_gates", [[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0], []])
def test_only_what_runs_is_computed(training, compute, open_gates):
    part = Counting().train(training)
    images = torch.randn(len(open_gates), 2, 3, 3)
    gate = torch.tensor(open_gates, dtype=torch.float32)
    out = run_gated(part, part, (images,), gate, None, compute)
    torch.testing.assert_close(out, 2 * images * gate[:, None, None, None])
    assert part.seen == [len(open_gates) if training and compute == "masked" else sum(open_gates)]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_in_eval_only_what_runs_is_computed(name):
    model = make_small(name)
    seen = []
    parts = model.units[1:] if hasattr(model, "units") else [layer for b in model.fine.blocks for layer in b.layers]
    for part in parts:
        getattr(part, "conv2", part.conv1).register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    model(make_images(model, 7), gates := some_gates(model, 7))
    assert seen == gates["units" if hasattr(model, "units") else "fine"].sum(0).tolist()


def test_statistics_are_those_of_the_images_that_run():
    part = nn.BatchNorm2d(2, momentum=1.0)
    images = torch.randn(4, 2, 3, 3)
    run_gated(part, part, (images,), torch.tensor([1.0, 0.0, 1.0, 0.0]), None, "selected")
    torch.testing.assert_close(part.running_mean, images[[0, 2]].mean((0, 2, 3)))
    assert part.num_batches_tracked == 1


@pytest.mark.parametrize("gate", [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
def test_none_or_a_lone_image_leaves_the_statistics_alone(gate):
    part = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    before = copy.deepcopy(part.state_dict())
    images = torch.randn(3, 2, 1, 1)
    out = run_gated(part, part, (images,), torch.tensor(gate), None, "selected")
    out.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
    assert all(module.training for module in part.modules())
    assert part[0].weight.grad is not None
    torch.testing.assert_close(out, part.eval()(images) * torch.tensor(gate)[:, None, None, None])


@pytest.mark.parametrize("name", ["dsn-navon", "skipnet-38-rnn"])
def test_a_step_in_which_no_image_runs_anything(name):
    model = in_training(name, "selected", norms_in_eval=False)
    gates = {n: torch.zeros_like(g) for n, g in some_gates(model, 4).items()}
    loss_of(model(make_images(model, 4, torch.float64), gates)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_stays(form):
    part = nn.Conv2d(4, 6, 3, padding=1).to(memory_format=form)
    images = torch.randn(3, 4, 5, 5).to(memory_format=form)
    out = run_gated(part, part, (images,), torch.tensor([1.0, 0.0, 1.0]), None, "selected")
    assert out.is_contiguous(memory_format=form)


@pytest.mark.long
@pytest.mark.parametrize("name", ["dsn-navon", "skipnet-38-rnn"])
@torch.no_grad()
def test_a_captured_graph_masks(name):
    model = make_small(name)
    images = make_images(model, 4)
    expected = model(images)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), expected)
    torch.testing.assert_close(torch.jit.trace(model, images, check_trace=False)(images), expected)


@pytest.mark.parametrize("compute", ["masked", "selected"])
@pytest.mark.parametrize("gate", [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
def test_the_wider_type_wins(gate, compute):
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)
    out = run_gated(nn.Identity(), lambda x: 2 * x.float(), (x,), torch.tensor(gate), x, compute)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x.float() * (1 + torch.tensor(gate))[:, None, None, None])


def test_a_network_that_skips_no_layers_has_nothing_to_select():
    with pytest.raises(UserError, match="compute is 'selected', but a ResNet skips no layers or units; use 'masked'"):
        set_compute(make_small("resnet-164"), "selected")


@pytest.mark.long
def test_several_processes_mask(tmp_path, monkeypatch):
    path = tmp_path / "tiny.toml"
    path.write_text(DSN.replace("[train]", '[train]\ncompute = "selected"'))
    monkeypatch.setattr("dsn_models.distributed.world_size", lambda: 2)
    with pytest.raises(UserError, match="recipe tiny: train.compute 'selected' is for one process"):
        train(path, None, tmp_path, progress=False)


def test_another_form_is_refused():
    with pytest.raises(UserError, match="compute is 'sparse'; expected one of masked, selected"):
        set_compute(make_small("dsn-navon"), "sparse")
