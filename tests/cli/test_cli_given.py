"""``dsn gate`` of files that tell their network: released weights that conversion knows, and checkpoints of ours."""

import sys
from pathlib import Path

import pytest
import torch
from own_network import write_images

import dsn_models
from dsn_models import checkpoints

sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))
from released_resnet import released

SMALL = {"stage_units": (2, 2, 2), "stage_widths": (8, 8, 8), "stem_width": 8, "image_size": 16}
SHORT = ["--data", "data", "--iterations", 3, "--batch", 16]


@pytest.fixture
def data(tmp_path):
    write_images(tmp_path / "data")
    torch.save(released((2, 2, 2), (8, 8, 8), stem=8, projection=None), tmp_path / "released.th")
    return tmp_path


def test_released_weights_need_no_constructor(data, dsn):
    status, out, error = dsn("gate", "released.th", *SHORT, "--image-size", 16, "--out", "new/gated")
    assert status == 0, error
    assert "released.th: resnet-14 of 10 classes, by its keys (CIFAR ResNets, 'linear', shortcuts padded" in error
    assert "normalised by mean 0.485 0.456 0.406 and std 0.229 0.224 0.225 (ImageNet's, of the published" in error
    assert "the data has 3 classes, released.th another number: head.2.weight, head.2.bias begin anew" in error
    assert "new/gated.safetensors: 48 images" in out and "--arch" not in out
    assert "as it was given" not in out + error  # it does not know these classes
    model = dsn_models.load("new/gated.safetensors")  # nothing but our own code constructs it
    assert (model.config.name, model.config.classes, model.config.image_size) == ("resnet-14", 3, 16)
    assert model.class_names == ["blue", "green", "red"] and model.preprocess.mean == (0.485, 0.456, 0.406)
    for words in (["eval", "--data", "data"], ["predict", "data/test/red/0.png"]):
        status, _, error = dsn(words[0], "new/gated.safetensors", *words[1:])
        assert status == 0, error


def test_a_checkpoint_of_ours_needs_none_either(data, dsn):
    network = dsn_models.create("resnet-20", classes=3, **SMALL)
    facts = {"data": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    dsn_models.save(network, "plain.safetensors", **facts)
    status, _, error = dsn("gate", "plain.safetensors", *SHORT, "--out", "gated.v2")
    assert status == 0, error
    assert "plain.safetensors: resnet-20 of 3 classes; normalised by mean 0.5 0.5 0.5" in error
    assert "begin anew" not in error
    model = dsn_models.load("gated.v2.safetensors")
    assert model.config.image_size == 16 and model.preprocess.std == (0.25, 0.25, 0.25)
    assert checkpoints.read_family("plain.safetensors") == "resnet"
    assert checkpoints.read_family("gated.v2.safetensors") == "constructed"
    status, out, error = dsn("gate", "gated.v2.safetensors", *SHORT, "--out", "again")
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert "was made to skip by dsn gate already; give the file it was made of" in error


def test_gates_begin_with_the_network_as_it_was(data):
    from dsn_models.constructors import ZOO, gate_constructed, zoo_options

    network = dsn_models.create("resnet-20", classes=3, **SMALL).eval()
    images = torch.rand(2, 3, 16, 16)
    gated, _ = gate_constructed(network, ZOO, zoo_options(network), images, "auto", "pooled")
    dsn_models.save(gated, "gated.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(dsn_models.load("gated.safetensors")(images), network(images))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["plain.safetensors", "--arch", "os:system"], "tells what constructs its network; leave --arch out"),
        (["plain.safetensors", "--option", "depth=3"], "--option is for the constructor of --arch"),
        (["other.pth"], "which no known format has; expected skipnet, "),
        (["other.pth"], "or name what constructs its network: --arch PKG.MODULE:FUNCTION"),
        (["skipnet.safetensors"], "has gates already; give the network without them that it was made of"),
        (["pair.safetensors"], "has gates already"),
        (["absent.pth"], "no file absent.pth; expected weights"),
        (["plain.safetensors", "--out", "gated.pth"], "expected a name that ends in .safetensors, or has no ending"),
        (["plain.safetensors", "--out", "my net"], "expected a name of letters, digits, points, dashes"),
        (["plain.safetensors", "--target", "latency=2ms"], "expected macs=S or latency=S with S in (0, 1]"),
        (["plain.safetensors", "--target", "flops=0.5"], "expected macs=S or latency=S"),
        (["plain.safetensors", "--iterations", "0"], "'--iterations'"),
        (["plain.safetensors", "--data", "plain.safetensors"], "expected an existing folder that holds images"),
    ],
)
def test_a_mistake_is_one_line(data, dsn, words, told):
    dsn_models.save(dsn_models.create("resnet-20", classes=3, **SMALL), "plain.safetensors")
    dsn_models.save(dsn_models.create("skipnet-38-rnn", stage_units=(1, 1, 1)), "skipnet.safetensors")
    dsn_models.save(dsn_models.create("dsn-navon", block_layers=(1, 1), image_size=16), "pair.safetensors")
    torch.save({"stem.weight": torch.ones(4, 4)}, "other.pth")
    given = {"--data": "data", "--out": "gated"}
    rest = [word for pair in given.items() if pair[0] not in words for word in pair]
    status, out, error = dsn("gate", *words, *rest)
    assert (status, out, error.count("\n")) == (2, "", 1) and told in error
    assert not Path("gated.safetensors").exists() and not Path("gated.state").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["eval", "gated.safetensors"],
            "expected an existing folder that holds pictures as test/CLASS/*.jpg; name one",
        ),
        (["bench", "gated.safetensors", "--data", "absent"], "data folder is absent; expected an existing folder"),
        (["report", "gated", "--data", "data"], "no checkpoint at gated; near it: gated.safetensors"),
        (["predict", "gated.safetensors"], "Missing argument 'FILE...'; see dsn predict --help"),
        (["predict", "gated.safetensors", "data"], "cannot be read as an image: it is a folder; name a file in it"),
        (
            ["sweep", "gated.safetensors", "--data", "data", "--budget", "accuracy=0.8"],
            "or accuracy=-0.5pt (of all gates",
        ),
        (["eval", "released.th", "--data", "data"], "convert its weights first: dsn convert released.th"),
        (["gate", "released.th", "--data", "data/train", "--out", "x"], "pictures lie in train/CLASS and test/CLASS"),
        (["gate", "released.th", "--out", "x"], "Missing option '--data'"),
    ],
)
def test_a_slip_on_the_road_is_told(data, dsn, words, told):
    from dsn_models.constructors import ZOO, gate_constructed, zoo_options

    network = dsn_models.create("resnet-20", classes=3, **SMALL).eval()
    gated, _ = gate_constructed(network, ZOO, zoo_options(network), torch.rand(1, 3, 16, 16), "auto", "pooled")
    recipe = {"task": "fine", "data": {"kind": "folder", "options": {"image_size": 16}}}
    normalised = {"mean": [0.5] * 3, "std": [0.25] * 3}
    dsn_models.save(gated, "gated.safetensors", recipe=recipe, data=normalised)
    status, out, error = dsn(*words)
    assert (status, out, error.count("\n")) == (2, "", 1) and told in error


@pytest.mark.parametrize(
    ("macs", "words"),
    [
        (0.71, "71.0 % of the MACs, reached"),
        (0.5, "reached, and more than that; dsn sweep CKPT --budget macs=0.7 opens gates"),
        (0.9, "90.0 % of the MACs, missed; more --epochs help"),
    ],
)
def test_what_was_reached_is_told(macs, words):
    from dsn_kernels.cli.gate import reached

    assert words in reached("macs=0.7", {"test": {"fine": {"macs": macs}}}, "fine")
