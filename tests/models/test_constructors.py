"""Networks by the name of their constructor: weights in the forms in which people keep them, and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dsn_models
from dsn_models import UserError
from dsn_models.constructors import check_permitted, construct, gate_constructed, put_weights
from dsn_models.convert import read_released
from tests.interop import make_foreign


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))


def prefixed(state, prefix):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


FORMS = {
    "plain": lambda state: state,
    "DataParallel": lambda state: {"state_dict": prefixed(state, "module.")},
    "compiled": lambda state: {"model": prefixed(state, "_orig_mod."), "optimizer": {"lr": 0.1}},
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3},
    "average alone": lambda state: {"ema_state_dict": prefixed(state, "module."), "step": 8},
    "half": lambda state: {key: t.half() if t.is_floating_point() else t for key, t in state.items()},
    "without counters": lambda state: {key: t for key, t in state.items() if "num_batches" not in key},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_any_form(form, tmp_path):
    torch.manual_seed(0)
    given, network = make(), make()
    torch.save(FORMS[form](given.state_dict()), tmp_path / "weights.pth")
    put_weights(network, read_released(tmp_path / "weights.pth")[0], "make", "weights.pth")
    for name, tensor in given.named_parameters():
        expected = tensor.half().float() if form == "half" else tensor
        assert torch.equal(network.get_parameter(name), expected), name


def test_weights_in_safetensors(tmp_path):
    given, network = make(), make()
    save_file(prefixed(given.state_dict(), "model."), tmp_path / "weights.safetensors")
    put_weights(network, read_released(tmp_path / "weights.safetensors")[0], "make", "weights")
    assert torch.equal(network[0].weight, given[0].weight)


def test_the_network_s_own_wrapper_is_none(tmp_path):
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make()

    given, network = make(), Owner()
    put_weights(network, given.state_dict(), "Owner", "weights")
    assert torch.equal(network.model[0].weight, given[0].weight)


def test_five_differences_are_named_with_near_names():
    network = nn.ModuleDict({"features": make(), "classifier": nn.Linear(4, 3)})
    state = {key.replace("features.", "feature."): tensor for key, tensor in network.state_dict().items()}
    state["classifier.weight"] = torch.zeros(5, 4)
    with pytest.raises(UserError) as error:
        put_weights(network, state, "make", "weights.pth")
    told = str(error.value)
    assert "features.0.weight is missing (near it: feature.0.weight)" in told
    assert told.count(";") == 5
    assert told.endswith("; and 20 more differences")
    del state["classifier.weight"], state["classifier.bias"]
    with pytest.raises(UserError, match="classifier.weight is missing; classifier.bias is missing$"):
        put_weights(nn.ModuleDict({"classifier": nn.Linear(4, 3)}), {}, "make", "weights.pth")


def test_only_what_is_named_is_permitted():
    check_permitted("a.b:c", "a.b:c", "file")
    check_permitted("a.b:c", ["x:y", "a.b:c"], "file")
    with pytest.raises(UserError, match="load\\(..., arch='a.b:c'\\)"):
        check_permitted("a.b:c", None, "file")
    with pytest.raises(UserError, match="names a.b:d, nothing was imported"):
        check_permitted("a.b:c", "a.b:d", "file")


@pytest.mark.parametrize("kind", ["pooled", "mlp", "recurrent"])
def test_a_network_of_another_library_is_kept_and_read(kind, tmp_path):
    make_foreign("pytorchcv", "resnet20_cifar10")  # skips where there is none
    arch = "pytorchcv.models.resnet_cifar:resnet20_cifar10"
    options = {"in_channels": 3}
    gated, report = gate_constructed(construct(arch, options), arch, options, torch.rand(1, 3, 32, 32), "auto", kind)
    assert gated.config.block_layers == (3, 2, 2)
    assert (gated.config.classes, len(report.parts)) == (10, 7)
    path = dsn_models.save(gated, tmp_path / "gated.safetensors", test={"accuracy": 0.5})
    again = dsn_models.load(path, arch)
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(images), gated.eval()(images))
    assert again.gate_macs.dense == report.macs
    dense = gated.dense_equivalent()
    assert not any("gate" in name for name, _ in dense.named_modules())
    ones = {"units": torch.ones(3, 7, dtype=torch.uint8)}
    with torch.inference_mode():
        assert torch.equal(dense(images), gated(images, forced_gates=ones))


def test_a_gated_network_without_a_constructor_is_not_kept(tmp_path):
    gated, _ = dsn_models.gate(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)), torch.rand(1, 3, 8, 8), units="0")
    with pytest.raises(UserError, match="model is a GatedNetwork"):
        dsn_models.save(gated, tmp_path / "gated.safetensors")
