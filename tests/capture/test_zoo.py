"""The networks of `dsn_models` as anybody's: by export, every gate kept, the counts those of their own planners."""

import pytest
import torch
from torch import nn

import dsn_kernels
import dsn_models
from dsn_models import selection
from dsn_models.gaternet import GaterNet
from dsn_models.skipnet import SkipNet
from tests.capture.capture_checks import Checked
from tests.checks import assert_as_exact_as_torch
from tests.networks import SMALL, make_images, randomise

CASES = {
    "concat-40": {},
    "concat-bc-100": {},
    "dsn-navon": {"block_layers": (1, 2)},
    "add-166": {},
    "lsn-navon": {"block_layers": (1, 2)},
    "skipnet-38-rnn": {},
    "skipnet-32-rnn": {"stage_units": (1, 1), "stage_widths": (8, 12), "stem_width": 8, "image_size": 9},
    "skipnet-38-ff": {},
    "skipnet-110-ff": {},
    "gaternet-resnet-20": {},
    "gaternet-resnet-164": {},
    "gaternet-densenet-100-12": {},
    "gaternet-shake-shake-64d": {},
    "gunn-15": {"widths": (8,), "segments": ((1, 3, 4),)},
    "sunn-15": {},
    "gunn-24": {},
    "resnet-164": {},
    "densenet-40": {},
    "densenet-bc-100": {},
    "shake-shake-64d": {},
    "lenet": {},
}
SLOW = ("gaternet-inception-v4", "inception-v4")


def make(name):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name, **{**SMALL.get(name, {}), **CASES.get(name, {})}))
    for module in model.modules():
        if hasattr(module, "path"):  # begins at zero
            nn.init.normal_(module.path.weight)
    return model


@pytest.mark.parametrize("name", [*(pytest.param(n, marks=pytest.mark.long) for n in CASES),
                                  *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])  # fmt: skip
@torch.no_grad()
def test_a_network_by_export(name, monkeypatch):
    monkeypatch.setattr(selection, "_counts_rows", lambda gate: False)  # a model says each gate word for all images
    model = make(name)
    x, generator = make_images(model, 5), torch.Generator().manual_seed(1)
    checked = Checked(model, x)
    own = dsn_kernels.accelerate(model, verify=False)
    gates = sum(own.layers.values())
    assert len(checked.gates) == gates
    checked.check(x)
    own(x)
    stems = 0  # the planner gives each branch one, so that two threads may walk them
    if name.startswith("add"):
        stems = model.stem.weight.numel() * model.config.image_size**2
    heads = 0  # torch computes them: they read the path
    if name.startswith("lsn"):
        heads = sum(
            branch.head.path.out_features * (1 + classes) // 2
            for branch, classes in ((model.coarse, 10), (model.fine, 10))
        )
        assert 0.99 < checked.fast.kernel_share < 1
    else:
        assert checked.whole and checked.fast.kernel_share == 1, checked.fast.summary()
    assert torch.equal(checked.fast.last_macs, own.last_macs - stems - heads)
    for density in (0, 0.5, 1) if gates else ():
        columns = (torch.rand(5, gates, generator=generator) < density).byte()
        if not name.startswith("lsn"):
            checked.check(x, columns)
            continue
        # Its heads read what was decided, and a gate word's replacement would not reach them.
        forced = dict(zip(model.gate_counts, columns.split(list(model.gate_counts.values()), 1), strict=True))
        actual = checked.fast(x, forced_gates=checked.named(columns))
        same, exact = model(x, forced_gates=forced), checked.double(x.double(), forced_gates=forced)
        for a, s, e in zip(actual, same, exact, strict=True):
            assert_as_exact_as_torch(a, s, e)


class OwnSkipNet(SkipNet):
    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


class OwnGaterNet(GaterNet):
    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind"), [("skipnet-38-rnn", OwnSkipNet), ("gaternet-resnet-20", OwnGaterNet)])
@torch.no_grad()
def test_a_subclass_with_a_forward_of_its_own_keeps_its_gates(name, kind):
    model = make(name)
    model.__class__ = kind
    x = make_images(model, 5)
    fast = dsn_kernels.accelerate(model, example=x, backend="cpu")
    assert_as_exact_as_torch(fast(x), model(x), model.double()(x.double()))
    (gates,) = fast.last_gates.values()
    (decided,) = model.last_gates.values()
    assert torch.equal(gates, decided)
