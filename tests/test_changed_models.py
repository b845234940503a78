"""A network that was changed is accelerated as it is, or refused in a line that names the place."""

import copy
import os
import random
from pathlib import Path

import mutations
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import dsn_kernels
import dsn_models
from dsn_models.convert import convert
from dsn_models.data import open_dataset
from dsn_models.errors import UserError
from tests.networks import SMALL, make_images, randomise

# One of each kind of unit, gate, stem and merge.
NAMES = (
    "concat-40", "add-166", "dsn-121", "lsn-navon", "densenet-bc-100", "resnet-18", "resnet-164", "skipnet-38-rnn",
    "skipnet-110-ff", "gaternet-resnet-20", "gunn-15", "gunn-18", "shake-shake-64d", "lenet",
)  # fmt: skip


def make(name):
    torch.manual_seed(0)
    return randomise(dsn_models.create(name, **SMALL[name]))


def assert_equal_or_refused(model, images):
    """The structure alone has to tell: the spot check is off."""
    reference = copy.deepcopy(model).eval()
    images = images.to(next(reference.parameters()).dtype)
    try:
        with torch.inference_mode():
            reference(images)
    except Exception:
        return  # nothing to be equal to
    try:
        fast = dsn_kernels.accelerate(model, verify=False)
    except UserError as error:
        assert "\n" not in str(error)
        return
    with torch.inference_mode():
        if isinstance(fast, dsn_kernels.Accelerated):
            result = fast.run(images)
            forced = {"forced_gates": result.gates} if result.gates else {}
            ours, theirs = result.outputs, reference.double()(images.double(), **forced)
        else:
            ours, theirs = fast(images), reference(images)
    for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert a.shape == b.shape
        error = (a.double() - b.double()).norm() / b.double().norm()
        assert error < 1e-4, f"wrong by {error:.2g} without a word"


@pytest.mark.filterwarnings("ignore:.*stays in torch")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mutation", mutations.ALL, ids=lambda mutation: mutation.__name__)
def test_a_changed_model_is_computed_as_it_is_or_refused(mutation, name):
    model = mutation(make(name), random.Random(f"{name} {mutation.__name__}").choice)
    if model is not None:
        assert_equal_or_refused(model, make_images(model, 2))


def changed(name, path, module):
    model = make(name)
    parent, _, child = path.rpartition(".")
    model.get_submodule(parent)._modules[child] = module
    return model


def assert_served(model):
    x = make_images(model, 2)
    with torch.inference_mode():
        result = dsn_kernels.accelerate(model).run(x)
        forced = {"forced_gates": result.gates} if result.gates else {}
        expected = model.eval()(x, **forced)
    torch.testing.assert_close(result.outputs, expected, rtol=1e-3, atol=1e-4)


def test_what_is_equal_in_evaluation_is_served():
    assert_served(nn.SyncBatchNorm.convert_sync_batchnorm(make("concat-bc-100")))
    assert_served(changed("concat-bc-100", "fine.blocks.0.layers.0.norm1", nn.BatchNorm2d(24, eps=0.5, affine=False)))
    head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Sequential(nn.Flatten(1), nn.Dropout()), nn.Linear(16, 10))
    assert_served(changed("skipnet-38-rnn", "head", head))
    assert_served(changed("skipnet-38-rnn", "head.2", nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 10))))
    assert_served(changed("concat-40", "fine.head.classifier", nn.Sequential(nn.Dropout(0.5), nn.Linear(96, 100))))
    assert_served(parametrized(make("gunn-15")))
    assert_served(torch.compile(make("resnet-164"), backend="eager")._orig_mod)
    assert_served(mutations.profiled(make("gaternet-resnet-20"), None))


DATA = Path(os.environ.get("DSN_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.skipif(not (DATA / "resnet56-cifar10.th").is_file(), reason=f"no resnet56-cifar10.th in {DATA}")
@torch.inference_mode()
@pytest.mark.long
def test_a_published_network_after_training_on_several_gpus():
    """What synchronises batch norms there leaves another class here, which once cost every answer."""
    model = convert(DATA / "resnet56-cifar10.th").model.eval()
    images = open_dataset("cifar-10-jpeg", DATA, False).batch(torch.arange(0, 10_000, 25))[0]
    expected = model(images)
    fast = dsn_kernels.accelerate(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)))
    assert torch.equal(fast(images).argmax(1), expected.argmax(1))


def parametrized(model):
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.utils.parametrizations.weight_norm(module)
    return model


def test_a_module_under_two_names_is_served():
    model = make("skipnet-38-rnn")
    model.gates[1] = model.gates[0]
    assert_served(model)


def circular(channels):
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False, padding_mode="circular")


def hooked():
    model = make("concat-40")
    model.fine.blocks[1].layers[0].conv1.register_forward_hook(lambda module, args, output: None)
    return model


def own_method():
    model = make("skipnet-38-rnn")
    model.units[1].merge = lambda shortcut, residual: residual
    return model


def pruned():
    model = make("resnet-18")
    nn.utils.prune.random_unstructured(model.units[0].conv1, "weight", 0.5)
    return model


def quantised():
    return torch.ao.quantization.quantize_dynamic(make("resnet-18"), {nn.Linear}, torch.qint8)


class _OwnGates(dsn_models.skipnet.SkipNet):
    def decision(self, threshold):
        return super().decision(0.9)


REFUSED = {
    "norm": (
        lambda: changed("concat-bc-100", "fine.blocks.0.layers.0.norm1", nn.GroupNorm(1, 24)),
        "fine.blocks.0.layers.0.norm1 is a GroupNorm; the kernels compute a BatchNorm2d there",
    ),
    "padding": (
        lambda: changed(
            "resnet-18", "units.0.conv1", nn.Conv2d(8, 8, 3, padding=1, bias=False, padding_mode="circular")
        ),
        "units.0.conv1 is a Conv2d with padding_mode 'circular'; the kernels compute padding_mode 'zeros'",
    ),
    "bias": (
        lambda: changed("concat-bc-100", "coarse.blocks.0.layers.0.conv1", nn.Conv2d(24, 48, 1)),
        r"coarse.blocks.0.layers.0.conv1.bias is there, of shape \[48\]; the Conv2d that the configuration asks",
    ),
    "statistics": (
        lambda: changed("resnet-18", "units.0.norm1", nn.BatchNorm2d(8, track_running_stats=False)),
        "units.0.norm1 is a BatchNorm2d with track_running_stats False",
    ),
    "pool": (
        lambda: changed("resnet-18", "stem.pool", nn.AvgPool2d(3, 2, 1)),
        "stem.pool is an AvgPool2d; the kernels compute a MaxPool2d there",
    ),
    "activation": (
        lambda: changed("resnet-18", "stem.relu", nn.SiLU()),
        "stem.relu is a SiLU; the kernels compute a ReLU there",
    ),
    "head": (
        lambda: changed("resnet-18", "head.2", nn.Sequential(nn.Linear(16, 1000), nn.Softmax(1))),
        "head is a sequence of AdaptiveAvgPool2d, Flatten, Linear, Softmax; the kernels compute AdaptiveAvgPool2d, Fl",
    ),
    "classes": (
        lambda: changed("resnet-18", "head.2", nn.Linear(16, 7)),
        "head.2 is a Linear with out_features 7; the kernels compute out_features 1000, as the model's configuration",
    ),
    "hook": (
        hooked,
        "fine.blocks.1.layers.0.conv1 is a Conv2d with a hook that the kernels would not call: remove hooked.<locals>",
    ),
    "method": (own_method, "units.1 is a BasicUnit with a merge of its own; the kernels compute what its class does"),
    "pruned": (pruned, "units.0.conv1 is a Conv2d with a hook .* make the pruning permanent with torch.nn.utils.prune"),
    "quantised": (
        quantised,
        "head.2 is a torch.ao.nn.quantized.dynamic.modules.linear.Linear; the kernels compute a Linear there",
    ),
    "gates": (
        lambda: _OwnGates(make("skipnet-38-rnn").config),
        "model is a _OwnGates, which overrides decision of SkipNet: its gates would be lost",
    ),
    "unit": (
        lambda: changed("shake-shake-64d", "units.0.shortcut", nn.ReLU()),
        "units.0.shortcut is a ReLU; the kernels compute an Identity there",
    ),
    "missing": (
        lambda: changed("gunn-15", "layers.0.units.1", None),
        "layers.0.units.1 is missing; the kernels compute an UpdateUnit there",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_expressed_is_refused_by_its_path(case):
    make_model, message = REFUSED[case]
    model = make_model()
    with pytest.raises(UserError, match=message) as refusal:
        dsn_kernels.accelerate(model)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["concat-bc-100", "skipnet-38-rnn", "gaternet-resnet-20", "lenet"])
def test_the_spot_check_sees_what_the_structure_does_not(name, monkeypatch):
    """Code that was patched from outside: the classes are the family's, what they compute is not."""
    layer = {"l": nn.Tanh, "g": dsn_models.resnet.BasicUnit, "s": dsn_models.resnet.BasicUnit}
    patched = layer.get(name[0], dsn_models.densenet.DenseLayer)
    forward = patched.forward
    monkeypatch.setattr(patched, "forward", lambda self, x: 1.1 * forward(self, x))
    if name[0] == "s":
        monkeypatch.setattr(patched, "merge", lambda self, shortcut, residual: shortcut + residual)
    model = make(name)
    with pytest.raises(
        UserError, match=r"outputs differ from the model's by .* of their norm, rounding explains"
    ) as no:
        dsn_kernels.accelerate(model)
    assert "\n" not in str(no.value)
    dsn_kernels.accelerate(model, verify=False)


class OwnNetwork(nn.Module):
    """A user's own: one unit called as a whole, one in pieces, one under two names, one that is not the kernels'."""

    def __init__(self):
        super().__init__()
        unit = dsn_models.resnet.BasicUnit
        self.first, self.pieces, self.twice = unit(8, 8, 1), unit(8, 8, 1), unit(8, 8, 1)
        self.again, self.changed = self.twice, unit(8, 8, 1)
        self.changed.norm1 = nn.GroupNorm(2, 8)

    def forward(self, x):
        x = self.again(self.twice(self.first(x)))
        return self.changed(self.pieces.merge(self.pieces.shortcut(x), self.pieces.residual(x)))


def test_parts_that_are_not_the_familys_stay_in_torch_and_are_named():
    torch.manual_seed(0)
    model, x = randomise(OwnNetwork()), torch.randn(2, 8, 9, 9)
    with pytest.warns(UserWarning) as said:
        fast = dsn_kernels.accelerate(model, example=x)
    assert fast.swapped == ["first", "twice", "again"]
    assert fast.kept == {
        "pieces": "the model does not call it as a whole",
        "changed": "norm1 is a GroupNorm; the kernels compute a BatchNorm2d there",
    }
    assert [str(w.message) for w in said] == [f"{name} stays in torch: {reason}" for name, reason in fast.kept.items()]
    assert fast.again is fast.twice
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*stays in torch")
def test_an_example_that_does_not_run_is_refused_in_one_line():
    with pytest.raises(
        UserError, match="OwnNetwork does not run on the input of the spot check: .*expected"
    ) as refusal:
        dsn_kernels.accelerate(OwnNetwork(), example=torch.randn(2, 3, 9, 9))
    assert "\n" not in str(refusal.value)


def test_a_part_of_another_type_stays_in_torch():
    model = nn.Sequential(dsn_models.resnet.BasicUnit(8, 8, 1), nn.Flatten()).half()
    with pytest.raises(UserError, match="0: conv1.weight is torch.float16; parts of a model are served in float32"):
        dsn_kernels.accelerate(model)


def test_models_that_cannot_be_copied_or_have_no_weights_are_refused():
    model = nn.Sequential(dsn_models.resnet.BasicUnit(8, 8, 1))
    model.kept = model[0].conv1.weight * 2
    with pytest.raises(UserError, match="model is a Sequential that cannot be copied: Only Tensors created explicitly"):
        dsn_kernels.accelerate(model)
    with pytest.raises(UserError, match="0.weight has no shape yet; run the model once before"):
        dsn_kernels.accelerate(nn.Sequential(nn.LazyLinear(3)))
