"""What `accelerate` does with networks that are not of the zoo, and at the edges of a gate's decision."""

import copy

import pytest
import torch
from torch import nn

import dsn_kernels
import dsn_models
from dsn_models.densenet import DenseBlock, Head
from dsn_models.errors import UserError
from dsn_models.gradually_updated import GradualLayer
from dsn_models.resnet import BasicUnit
from tests.checks import assert_as_exact_as_torch
from tests.networks import SMALL, make_images, randomise


class OwnNetwork(nn.Module):
    """Reference blocks of several families between convolutions of a user's own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, padding=2)
        self.stages = nn.Sequential(BasicUnit(8, 16, 2), nn.Dropout(0.1), BasicUnit(16, 16, 1))
        self.gradual = GradualLayer((4,) * 4, 2, 1, False, "gradual", False)
        self.dense = DenseBlock(16, 4, 2, bottleneck=True)
        self.head = Head(24, 5)

    def forward(self, x):
        return self.head(self.dense(torch.tanh(self.gradual(self.stages(self.stem(x))))))


@pytest.mark.long
@torch.inference_mode()
def test_a_users_network_of_blocks_of_several_families():
    torch.manual_seed(0)
    model = randomise(OwnNetwork())
    fast = dsn_kernels.accelerate(model)
    assert fast.swapped == ["stages.0", "stages.2", "gradual", "dense", "head"]
    for size in (16, 11):
        x = torch.randn(3, 3, size, size)
        assert_as_exact_as_torch(fast(x), model(x), copy.deepcopy(model).double()(x.double()))
    assert torch.equal(torch.compile(fast, fullgraph=True, backend="aot_eager")(x), fast(x))


@torch.inference_mode()
def test_one_block_is_swapped_and_the_rest_untouched():
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), BasicUnit(8, 8, 1), nn.BatchNorm2d(8), nn.Flatten()))
    fast = dsn_kernels.accelerate(model)
    assert fast.swapped == ["1"]
    assert [type(m) for m in fast] == [nn.Conv2d, dsn_kernels.Part, nn.BatchNorm2d, nn.Flatten]
    for i in (0, 2):
        for name, tensor in model[i].state_dict().items():
            assert torch.equal(tensor, fast[i].state_dict()[name])
    assert isinstance(model[1], BasicUnit), "the model given is left alone"
    x = torch.randn(2, 3, 9, 9)
    assert_as_exact_as_torch(fast(x), model(x), copy.deepcopy(model).double()(x.double()))


@torch.inference_mode()
def test_a_zoo_network_inside_a_users_own():
    torch.manual_seed(0)
    network = randomise(dsn_models.create("skipnet-38-rnn", **SMALL["skipnet-38-rnn"]))
    model = nn.Sequential(nn.Identity(), network, nn.Softmax(1)).eval()
    fast = dsn_kernels.accelerate(model)
    assert fast.swapped == ["1"]
    x = make_images(network, 3)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(fast[1].last_gates["units"], network.last_gates["units"])


@pytest.mark.parametrize("name", ["concat-bc-100", "add-166", "skipnet-38-rnn", "skipnet-110-ff", "gaternet-resnet-20"])
@torch.inference_mode()
def test_a_gate_that_ties_with_its_threshold_stays_shut(name):
    torch.manual_seed(0)
    model = randomise(dsn_models.create(name, **SMALL[name]))
    last = [model.gater.fc2] if name.startswith("gaternet") else []
    last += model.last_linears() if name.startswith("skipnet") else []
    last += [m.linear for m in model.modules() if isinstance(m, dsn_models.gates.PooledGate)]
    for linear in last:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    fast, x = dsn_kernels.accelerate(model), make_images(model, 2)
    fast(x)
    for key, scores in fast.last_scores.items():
        assert (scores == (0.0 if key == "filters" else 0.5)).all()
        assert not fast.last_gates[key].any()
    model(x)
    assert all(torch.equal(fast.last_gates[key], taken) for key, taken in model.last_gates.items())


def test_what_cannot_be_served_is_refused_with_the_list_of_what_can():
    with pytest.raises(UserError) as refusal:
        dsn_kernels.accelerate(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    message = str(refusal.value)
    assert message.startswith("model is a Sequential without a part that can be accelerated; supported: ")
    for name in ("DualSkippingNetwork", "LayerSkippableNetwork", "SkipNet", "GaterNet", "GraduallyUpdatedNetwork",
                 "GradualLayer", "BasicUnit", "SkipDenseBlock", *dsn_models.zoo.names()):  # fmt: skip
        assert name in message
    assert "\n" not in message


def test_a_gaternet_of_plain_dense_layers_is_refused():
    model = dsn_models.create(
        "gaternet-resnet-20", backbone="densenet-40", backbone_options={"block_layers": (2, 2)}, image_size=16
    )
    with pytest.raises(UserError, match="dense layers without a bottleneck"):
        dsn_kernels.accelerate(model)
