"""Weights as people keep them: where in a file they lie, what wraps their names, their types, namings and depths.

The right outputs are those of a network that is run here from the file's own tensors, by their names, in float64.
"""

import dataclasses
import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from released_resnet import released, run
from safetensors.torch import save_file
from test_convert import DATA, needs_data
from test_torchvision_weights import torchvision_state_dict
from torch import nn

import dsn_models
from dsn_models import UserError
from dsn_models.convert import FORMATS, convert
from dsn_models.training import load_recipe, train


@pytest.fixture
def save(tmp_path):
    def save(content, name="weights.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


SAME = ("layer2.0.conv1.weight", "units.1.conv1.weight")


def holds(path, state):
    """That a converted file has the weights of ``state``, and what it held beside them."""
    found = convert(path)
    assert torch.equal(found.model.state_dict()[SAME[1]], state[SAME[0]].float())
    return found


HOLDERS = ["net", "model", "model_state_dict", "state_dict", "ema", "ema_state_dict", "network", "module"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_under_every_usual_name(save, holder):
    state = released()
    path = save({holder: state, "epoch": 3, "acc": 91.5, "optimizer": {"state": {0: {"step": torch.ones(3)}}}})
    assert holds(path, state).facts == {"epoch": 3, "acc": 91.5}
    holds(
        save(
            {"checkpoint": 1, "state": {holder: {"model": state}}} if holder == "state" else {holder: {"model": state}}
        ),
        state,
    )


def test_trained_weights_come_before_their_average_and_two_networks_are_refused(save):
    trained, averaged = released(seed=1), released(seed=2)
    holds(save({"ema": averaged, "model": trained}), trained)
    holds(save({"ema": {"decay": 0.99, "module": averaged}}), averaged)
    holds(save({"anything": {"else": trained}}), trained)
    with pytest.raises(UserError, match="holds several networks, under 'generator' and 'teacher'; save the one"):
        convert(save({"generator": averaged, "teacher": trained}))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "model.backbone.module.",
     "module.model._orig_mod.", "net.network."],
)  # fmt: skip
def test_what_wraps_a_network_is_dropped(save, prefix):
    state = released(counters=True)
    holds(save({"state_dict": {prefix + key: value for key, value in state.items()}}), state)
    half = {key if key.startswith("linear") else prefix + key: value for key, value in state.items()}
    holds(save(half), state)


def test_wrapped_parts_and_two_tensors_of_one_name(save):
    state = released()
    holds(save({key.replace("layer2.", "layer2._orig_mod."): value for key, value in state.items()}), state)
    twice = {**{f"model.{key}": value for key, value in state.items()}, "bn1.bias": torch.ones(4)}
    with pytest.raises(UserError, match="'bn1.bias' is one of two different tensors of the name 'bn1.bias'"):
        convert(save(twice))


def test_parameters_counters_and_what_profilers_leave(save):
    state = released(counters=True)
    extra = {"total_ops": torch.zeros(1, dtype=torch.float64), "layer1.0.conv1.total_params": torch.ones(1).double(),
             "n_averaged": torch.tensor(3)}  # fmt: skip
    parameters = {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()}
    holds(save({"net": {**parameters, **extra}}), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_floats_of_any_width_become_float32(tmp_path, dtype, suffix):
    state = {key: value.to(dtype) for key, value in released().items()}
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state, path)
    model = holds(path, state).model
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(4).to(torch.float8_e4m3fn), "tensor 'bn1.bias' is float8_e4m3fn, whose scale or meaning the file"),
        (
            torch.ones(4, dtype=torch.int8),
            "is int8, whose scale or meaning .*; expected one of float32, float64, float16",
        ),
        (torch.ones(4, dtype=torch.complex64), "is complex64"),
        (torch.full((4,), 1e300, dtype=torch.float64), "holds numbers that float32 cannot"),
        (torch.tensor([1, torch.nan, 1, torch.inf]), "tensor 'bn1.bias' holds NaN"),
        (torch.tensor([1, 1, -torch.inf, 1]).half(), "tensor 'bn1.bias' holds infinity"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_what_is_no_weight_is_refused_by_name(tmp_path, tensor, said, suffix):
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)({**released(), "bn1.bias": tensor}, path)
    with pytest.raises(UserError, match=said):
        convert(path)


CIFAR, IMAGENET = (0.4914, 0.4822, 0.4465), (0.485, 0.456, 0.406)
GROUPED = {"name": "group{}_layer{}", "projection": "downsample", "classifier": "fc"}
FC = {"projection": "downsample", "classifier": "fc"}
NAMINGS = [
    ("cifar-resnet", "resnet-20", (3, 3, 3), {"projection": None}, IMAGENET),
    ("cifar-resnet", "resnet-44", (7, 7, 7), {"projection": None}, IMAGENET),
    ("cifar-resnet", "resnet-1202", (200, 200, 200), {"projection": None}, IMAGENET),
    ("cifar-resnet-shortcut", "resnet-44", (7, 7, 7), {}, None),
    ("cifar-resnet-shortcut", "resnet-18-conv3x3", (2, 2, 2, 2), {}, CIFAR),
    ("cifar-resnet-shortcut", "resnet-50-conv3x3", (3, 4, 6, 3), {"bottleneck": True}, CIFAR),
    ("cifar-resnet-fc", "resnet-56", (9, 9, 9), FC, CIFAR),
    ("cifar-resnet-fc", "resnet-110", (18, 18, 18), FC, CIFAR),
    ("skipnet-resnet", "resnet-38", (6, 6, 6), GROUPED, CIFAR),
    ("skipnet-resnet", "resnet-18", (2, 2, 2, 2), {**GROUPED, "kernel": 7}, None),
    ("torchvision-resnet", "resnet-34", (3, 4, 6, 3), {**FC, "kernel": 7}, None),
    ("torchvision-resnet", "resnet-50", (3, 4, 6, 3), {**FC, "kernel": 7, "bottleneck": True}, None),
]


@pytest.mark.long
@pytest.mark.parametrize(("told", "name", "units", "options", "mean"), NAMINGS)
@torch.no_grad()
def test_namings_and_depths(save, told, name, units, options, mean):
    deep = sum(units) > 100
    widths = (16, 32, 64, 128)[: len(units)] if not deep else (4, 4, 8)
    state = released(units, widths, stem=8, **options)
    found = convert(save(state))
    config = found.model.config
    assert (found.format, config.stage_units, config.stage_widths) == (told, units, widths)
    assert config.name.startswith(name.removesuffix("-conv3x3")) and told in FORMATS
    size = 16 if options.get("kernel", 3) == 3 else 64
    config = dataclasses.replace(config, image_size=size)
    model = dsn_models.zoo.build("resnet", dataclasses.asdict(config)).double().eval()
    model.load_state_dict({key: value.double() for key, value in found.model.state_dict().items()})
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    form = {key: value for key, value in options.items() if key != "kernel"}
    torch.testing.assert_close(model(images.double()), run(state, images, units, **form), rtol=1e-9, atol=1e-9)


PUBLISHED = [case for case in NAMINGS if case[1] in ("resnet-18-conv3x3", "resnet-38") or case[2][0] in (3, 7, 9, 18)]


@pytest.mark.parametrize(
    ("told", "name", "units", "options", "mean"), [case for case in PUBLISHED if not case[3].get("bottleneck")]
)
def test_published_widths_have_the_zoos_names_and_their_normalisation(save, told, name, units, options, mean):
    bottleneck = options.get("bottleneck", False)
    widths = (16, 32, 64) if len(units) == 3 else (256, 512, 1024, 2048) if bottleneck else (64, 128, 256, 512)
    shapes = released(units, widths, stem=16 if len(units) == 3 else 64, **options)
    found = convert(save({key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}))
    assert (found.format, found.model.config.name) == (told, name)
    assert (found.normalisation and found.normalisation.mean) == mean


@pytest.mark.parametrize(
    ("options", "std"),
    [({"classes": 100}, (0.2673, 0.2564, 0.2761)), ({"classes": 7}, None), ({"channels": 1}, None)],
)
def test_other_classes_and_channels(save, options, std):
    found = convert(save(released((3, 3, 3), (16, 32, 64), stem=16, **FC, **options)))
    config = found.model.config
    assert (config.classes, config.in_channels) == (options.get("classes", 10), options.get("channels", 3))
    assert (found.normalisation and found.normalisation.std) == std
    images = torch.zeros(1, config.in_channels, 32, 32)
    assert found.model(images).shape == (1, config.classes)


@pytest.mark.long
def test_a_densenet_of_grey_images_old_keys_and_what_dsn_121_leaves_untrained(save, tmp_path):
    state = torchvision_state_dict()
    state["features.conv0.weight"] = state["features.conv0.weight"][:, :1].clone()
    old = {
        k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in k else k: v
        for k, v in state.items()
    }
    assert old.keys() != state.keys()
    dense = convert(save({"state_dict": {f"module.{key}": value for key, value in old.items()}}))
    assert (dense.model.config.in_channels, dense.notes) == (1, ())
    assert torch.equal(
        dense.model.blocks[0].layers[0].conv2.weight, state["features.denseblock1.denselayer1.conv2.weight"]
    )
    torch.manual_seed(1)
    first = convert(save(state), "dsn-121", 1000)
    torch.manual_seed(2)
    second = convert(save(state), "dsn-121")
    files = [dsn_models.save(found.model, tmp_path / f"{i}.safetensors") for i, found in enumerate((first, second))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert any(note.startswith("coarse.head.classifier.weight: left at its initial values") for note in first.notes)
    assert first.notes[-1] == "116 gates left at their initial values"
    assert first.normalisation is None  # of grey images nobody tells
    with pytest.raises(UserError, match="the weights are of 1000 classes, 5 were asked for"):
        convert(save(state), "dsn-121", 5)
    with pytest.raises(UserError, match="tensor 'features.norm5.bias' holds infinity"):
        convert(save({**state, "features.norm5.bias": torch.full((1024,), torch.inf)}))


def archive(kind):
    buffer = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=buffer, mode="w") as file:
            file.addfile(tarfile.TarInfo("model/weights.txt"))
    elif kind == "npz":
        np.savez(buffer, a=np.zeros(3))
    else:
        names = {"zip": ["readme.txt"], "script": ["data.pkl", "code/net.py", "constants.pkl"]}[kind]
        with zipfile.ZipFile(buffer, "w") as file:
            for name in names:
                file.writestr(f"model/{name}", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer; fetch the file itself",
        ),
        (b"<!DOCTYPE html>\n<html>", "a web page; download the file itself"),
        (b"\xef\xbb\xbf\n<HTML>", "a web page"),
        (b"", "empty; copy it again"),
        (gzip.compress(b"x" * 99, mtime=0), "a gzip archive; unpack it"),
        (archive("zip"), "a zip archive; unpack it"),
        (archive("npz"), "a NumPy archive"),
        (archive("tar"), "a tar archive; unpack it"),
        pytest.param(archive("script"), "a TorchScript program; save the state_dict of the network alone", id="script"),
        (b"\x89HDF\r\n\x1a\n123", "an HDF5 file, as Keras writes"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, said):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is no file of weights but {said}") as caught:
        convert(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_anywhere_is_one_line(tmp_path, form):
    path = tmp_path / "w.bin"
    if form == "safetensors":
        save_file(released(), path)
    else:
        torch.save({"net": released(), "acc": 1.0}, path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    for cut in [*range(0, 64, 7), *range(64, len(data), len(data) // 30)]:
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match="is cut short or is no file of weights|is no file of weights") as caught:
            convert(path)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_ours_needs_no_conversion(tmp_path):
    path = dsn_models.save(dsn_models.create("lenet"), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="is a checkpoint of ours already; use it as it is"):
        convert(path)


RECIPE = """
name = "tiny"
model = "MODEL"
task = "fine"
init = "init.safetensors"
[options]
in_channels = 1
image_size = 16
stem_width = 4
stage_units = [1, 1, 1]
stage_widths = [4, 8, 8]
shortcut = "pad"
[data]
kind = "navon-sklearn"
train_images = 16
test_images = 8
[data.options]
canvas = 16
glyph = 4
[train]
epochs = 1
batch = 8
"""


@pytest.mark.parametrize("name", ["resnet-20", "skipnet-38-rnn"])
def test_init_of_other_classes_begins_a_fresh_classifier_and_says_so(save, tmp_path, monkeypatch, capsys, name):
    """What the documents promise: convert, then fine-tune for another class count."""
    monkeypatch.chdir(tmp_path)
    state = released(projection=None, channels=1, classes=3)
    found = convert(save(state)).model
    model = dsn_models.zoo.build("resnet", {**dataclasses.asdict(found.config), "image_size": 16})
    model.load_state_dict(found.state_dict())
    dsn_models.save(model, "init.safetensors", data={"mean": [0.5], "std": [0.5]})
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("MODEL", name))
    trained = dsn_models.load(train(load_recipe("tiny.toml"), None, "out"))
    said = " ".join(capsys.readouterr().err.split())
    assert trained.config.classes == 10
    assert "note: init init.safetensors has 3 classes, the recipe 10: head.2.weight, head.2.bias begin anew" in said
    assert "was trained on images of mean [0.5], the recipe's data has [0.0]; data.options.mean sets it" in said
    before = state["layer2.0.conv1.weight"]
    assert (trained.units[1].conv1.weight - before).abs().max() < 0.5 * before.abs().max()


@needs_data
@pytest.mark.long
def test_a_real_resnet_is_evaluated_with_the_normalisation_that_it_carries(tmp_path, monkeypatch):
    from dsn_kernels.cli.inputs import open_test_data
    from dsn_models.checkpoints import read_metadata
    from dsn_models.training import evaluate

    found = convert(DATA / "resnet32-cifar10.th")
    assert found.normalisation.mean == IMAGENET and "option A" in found.normalisation.source
    data = {"mean": [*found.normalisation.mean], "std": [*found.normalisation.std]}
    path = dsn_models.save(found.model, tmp_path / "m.safetensors", data=data)

    def accuracy(metadata, images=400):
        dataset = open_test_data(found.model, metadata, "cifar-10-jpeg", DATA, images)
        return evaluate(dsn_models.load(path), dataset, task="fine")["fine"]["accuracy"]

    right = accuracy(read_metadata(path))
    assert right > 0.8
    assert accuracy({"data": {"mean": [0.0] * 3, "std": [1.0] * 3}}) < right - 0.1
