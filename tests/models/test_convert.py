import os
import pickle
from pathlib import Path

import pytest
import torch
from released_skipnet import make_released, released_state
from safetensors.torch import save_file
from test_skipnet import CASES, images_of

import dsn_models
from dsn_models import UserError, zoo
from dsn_models.convert import convert, export_skipnet, names
from dsn_models.data import open_dataset
from dsn_models.skipnet import UNITS
from dsn_models.training import evaluate

DATA = Path(os.environ.get("DSN_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "resnet20-cifar10.th").is_file(), reason=f"no resnet20-cifar10.th in {DATA}"
)


def zoo_config(name):
    with torch.device("meta"):
        return dsn_models.create(name).config


@pytest.fixture
def write(tmp_path):
    """Writes a state dict as released, to convert."""

    def write(state, **beside):
        path = tmp_path / "model_best.pth.tar"
        torch.save({"state_dict": state, "arch": "x", "best_prec1": 92.5, **beside}, path)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("skipnet-38-rnn", 249),
        ("skipnet-74-rnn", 465),
        ("skipnet-110-rnn", 681),
        ("skipnet-50-rnn-imagenet", 325),
        ("skipnet-101-rnn-imagenet", 614),
    ],
)
def test_key_counts(name, keys):
    config = zoo_config(name)
    assert len(names.released_skipnet(config)) == keys
    with torch.device("meta"):
        assert len(released_state(make_released_shape(config))) == keys


def make_released_shape(config):
    from released_skipnet import ReleasedSkipNet

    bottleneck = config.unit == "bottleneck"
    return ReleasedSkipNet(config.stage_units, config.stage_widths, config.stem_width, config.classes, config.gate,
                           config.stem == "imagenet", bottleneck)  # fmt: skip


@pytest.mark.parametrize(
    "quirks",
    [
        {},
        {"prefix": False},
        {"copies": False},
        {"counters": True},
        {"prefix": False, "copies": False, "counters": True},
    ],
)
@torch.no_grad()
def test_a_released_skipnet_gives_identical_outputs(write, quirks):
    config = zoo_config("skipnet-38-rnn")
    released = make_released(config)
    converted = convert(write(released_state(released, **quirks), iter=torch.tensor(64000)))
    assert converted.format == "skipnet"
    assert converted.facts == {"arch": "x", "best_prec1": 92.5, "iter": 64000}
    assert converted.model.config == config and not converted.model.training
    images = images_of(converted.model, 3)
    expected, gates = released.float().double()(images)  # rounded as the file is
    torch.testing.assert_close(converted.model.double()(images), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(converted.model.last_gates[UNITS], gates.to(torch.uint8))


@pytest.mark.parametrize("name", ["skipnet-38-ff", "skipnet-74-ff", "skipnet-110-ff", "skipnet-18-rnn-imagenet"])
def test_the_network_is_told_from_the_keys(write, name):
    config = zoo_config(name)
    released = make_released(config)
    model = convert(write(released_state(released))).model
    assert model.config == config
    assert torch.equal(model.units[1].conv2.weight, released.group1_layer1.conv2.weight.float())


@pytest.mark.parametrize("pointwise", [False, True])
def test_projection_of_the_recurrent_gate(write, pointwise):
    state = released_state(make_released(zoo_config("skipnet-38-rnn")))
    weight = state["module.control.proj.weight"]
    state["module.control.proj.weight"] = weight[:, :, None, None] if pointwise else weight
    assert torch.equal(convert(write(state)).model.control.proj.weight, weight)


@pytest.mark.parametrize("only", ["group2_ds0", "group2_layer0.downsample"])
def test_either_name_of_a_projection_is_enough(write, only):
    other = {"group2_ds0": "group2_layer0.downsample", "group2_layer0.downsample": "group2_ds0"}[only]
    released = make_released(zoo_config("skipnet-38-rnn"))
    state = {key: value for key, value in released_state(released).items() if other not in key}
    model = convert(write(state)).model
    assert torch.equal(model.units[6].shortcut[0].weight, released.group2_ds0[0].weight.float())


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_export_is_the_authors_format(name, tmp_path):
    model = dsn_models.create(name, **CASES[name]).double().eval()
    path = export_skipnet(model, tmp_path / "released.pth")
    content = torch.load(path, weights_only=True)
    released = make_released(model.config)
    state = {key.removeprefix("module."): value for key, value in content["state_dict"].items()}
    assert len(state) == len(content["state_dict"]) == len(released_state(released))
    missing, unexpected = released.load_state_dict(state, strict=False)
    assert all("num_batches" in key for key in missing) and not unexpected
    images = images_of(model, 3)
    torch.testing.assert_close(model(images), released(images)[0], rtol=1e-9, atol=1e-9)


def test_export_and_back(tmp_path):
    model = dsn_models.create("skipnet-74-ff").eval()
    again = convert(export_skipnet(model, tmp_path / "released.pth")).model
    assert again.config == model.config
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
    with pytest.raises(UserError, match="model is a LeNet; only a SkipNet has the authors' format"):
        export_skipnet(dsn_models.create("lenet"), tmp_path / "x.pth")
    model = dsn_models.create("skipnet-38-rnn", stage_units=(1, 1, 1))
    with pytest.raises(UserError, match="x.safetensors would be a file of torch.save, .*; name it .pth"):
        export_skipnet(model, tmp_path / "x.safetensors")


@needs_data
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 91.78), (32, 92.78)])
def test_real_resnets(depth, accuracy):
    converted = convert(DATA / f"resnet{depth}-cifar10.th")
    assert converted.format == "cifar-resnet"
    assert converted.facts["best_prec1"] == pytest.approx(accuracy)
    assert (converted.model.config.name, converted.model.config.shortcut) == (f"resnet-{depth}", "pad")


@needs_data
@pytest.mark.long
def test_the_real_resnet_20_scores_81_percent_on_jpeg():
    model = convert(DATA / "resnet20-cifar10.th").model.to(memory_format=torch.channels_last)
    dataset = open_dataset("cifar-10-jpeg", DATA, False)
    assert evaluate(model, dataset, task="fine")["fine"]["accuracy"] == pytest.approx(0.810, abs=0.0015)


def theirs(state_names, model):
    own = model.state_dict()
    return {key: own[ours].clone() for key, ours in state_names.items()}


@pytest.mark.parametrize("name", ["resnet-18", "resnet-34", "resnet-50", "resnet-101", "resnet-152"])
def test_torchvision_resnets(tmp_path, name):
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    released = getattr(torchvision.models, name.replace("-", ""))(num_classes=4).eval()
    save_file(released.state_dict(), tmp_path / "r.safetensors")
    converted = convert(tmp_path / "r.safetensors")
    assert converted.format == "torchvision-resnet" and converted.model.config.name == name
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(converted.model(images), released(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "tensors"), [("resnet-18", 102), ("resnet-50", 267), ("resnet-152", 777)])
def test_torchvision_resnet_keys(tmp_path, name, tensors):
    """torchvision's state dicts have 122, 320 and 932 keys: these and a counter for each batch norm."""
    model = dsn_models.create(name, classes=3)
    state = theirs(names.torchvision_resnet(model.config), model)
    assert len(state) == tensors
    assert state["layer2.0.downsample.0.weight"].shape[2:] == (1, 1)
    torch.save(state, tmp_path / "r.pth")
    again = convert(tmp_path / "r.pth").model
    assert again.config == model.config
    own = model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())


@pytest.mark.long
def test_densenet_121(tmp_path):
    from test_torchvision_weights import torchvision_state_dict

    torch.save(torchvision_state_dict(), tmp_path / "d.pth")
    converted = convert(tmp_path / "d.pth")
    assert (converted.format, converted.model.config.name) == ("torchvision-densenet121", "densenet-121")
    assert zoo.family_of(convert(tmp_path / "d.pth", "dsn-121").model) == "dual_skipping"
    with pytest.raises(UserError, match="for densenet-121 or dsn-121"):
        convert(tmp_path / "d.pth", "resnet-18")


def cifar_state(depth=20):
    model = dsn_models.create(f"resnet-{depth}")
    return theirs(names.cifar_resnet(model.config), model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer1.2.conv1.weight": None}, "key 'layer1.2.conv1.weight' is missing; expected all tensors of resnet-20"),
        ({"linear.bias": None}, "key 'linear.bias' is missing"),
        ({"layer1.999999999.conv1.weight": torch.ones(1)}, "convolutions of units are missing; expected all tensors"),
        ({"layer4.0.bn1.weight": torch.ones(1)}, "convolutions of units are missing; expected all tensors of a cifar"),
        ({"layer1.0.conv3.bias": torch.ones(1)}, "unexpected key 'layer1.0.conv3.bias'; resnet-20 has no such tensor"),
        ({"bn1.weight": torch.ones(17)}, r"tensor 'bn1.weight' has shape \[17\]; expected \[16\]"),
        ({"bn1.weight": torch.full((16,), torch.nan)}, "tensor 'bn1.weight' holds NaN"),
        ({"bn1.weight": torch.full((16,), torch.inf)}, "tensor 'bn1.weight' holds infinity"),
        (
            {"conv1.weight": torch.ones(16, 3, 5, 5)},
            r"'conv1.weight' is a convolution of \[5, 5\]; expected 3 x 3 or 7 x 7",
        ),
        ({"layer3.3.conv1.weight": torch.ones(64, 64, 3, 3)}, "key 'layer3.3.bn1.weight' is missing; .* of resnet-22"),
        ({"conv1.weight": None}, "key 'conv1.weight' is missing; expected all tensors of a cifar-resnet file"),
        ({"linear.weight": None}, "key 'linear.weight' is missing; expected all tensors of a cifar-resnet file"),
    ],
)
def test_keys_that_do_not_fit_are_named(write, change, said):
    state = {**cifar_state(), **change}
    with pytest.raises(UserError, match=said):
        convert(write({key: value for key, value in state.items() if value is not None}))


def test_copies_must_agree(write):
    state = released_state(make_released(zoo_config("skipnet-38-rnn")))
    state["module.group2_ds0.1.bias"] = state["module.group2_ds0.1.bias"] + 1
    with pytest.raises(UserError, match="differs from 'group2_.*'; in skipnet-38-rnn both are one tensor"):
        convert(write(state))


def test_class_count_and_model_are_checked(write):
    path = write(cifar_state())
    assert convert(path, classes=10).model.config.classes == 10
    with pytest.raises(UserError, match="the weights are of 10 classes, 100 were asked for"):
        convert(path, classes=100)
    with pytest.raises(UserError, match="model is 'skipnet-38-rnn'; a cifar-resnet file is for one of resnet-20"):
        convert(path, "skipnet-38-rnn")
    with pytest.raises(UserError, match=r"key 'layer1.3.conv1.weight' is missing; expected all tensors of resnet-32"):
        convert(path, "resnet-32")


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_is_refused(tmp_path, legacy):
    path = tmp_path / "evil.pth"
    content = {"state_dict": cifar_state(), "hook": Evil()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds objects that could run code; refused"):
        convert(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="refused"):
        convert(path)
    assert not Evil.ran


def test_files_that_are_none(tmp_path, write):
    with pytest.raises(UserError, match="no file .*expected weights written by torch.save or safetensors"):
        convert(tmp_path / "none.pth")
    path = write(cifar_state())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="cut short or is no file of weights"):
        convert(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="holds a dict without weights"):
        convert(path)
    torch.save({"encoder.weight": torch.ones(1)}, path)
    with pytest.raises(
        UserError, match="begin with the key 'encoder.weight', which no known format has; expected skipnet"
    ):
        convert(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds a list without weights"):
        convert(path)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cut short or is no file of weights"):
        convert(tmp_path / "x.safetensors")
