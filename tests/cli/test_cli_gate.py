"""``dsn gate``: a user's network learns to skip; its checkpoint, and that nothing is imported which was not named."""

import json
import os
import signal
import sys

import pytest
import torch
from own_network import ARCH, own_network, write_images, write_package, write_weights

import dsn_models
from dsn_kernels.measure.networks import run
from dsn_kernels.tuning.operating_point import set_operating_point
from dsn_models import checkpoints
from dsn_models.training.objectives.constructed import ConstructedObjective

OPTIONS = ["--image-size", 16, "--epochs", 2, "--batch", 16, "--target", "macs=0.7", "--lr", 0.1]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a package, weights and images; what is imported from it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    write_package(tmp_path)
    write_images(tmp_path / "data")
    write_weights(tmp_path / "weights.pth")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("ownpackage")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def gated_file(tmp_path_factory):
    """A checkpoint of ``dsn gate``, of a network that was not trained, and its folder."""
    folder = tmp_path_factory.mktemp("gated")
    write_package(folder)
    write_images(folder / "data")
    path = sys.path
    sys.path = [*path, str(folder)]
    try:
        from dsn_models.constructors import construct, gate_constructed

        torch.manual_seed(0)
        network = construct(ARCH, {"units": 4})
        gated, _ = gate_constructed(network, ARCH, {"units": 4}, torch.rand(1, 3, 16, 16), "auto", "pooled")
        with torch.no_grad():
            for linear in gated.last_linears():
                linear.weight.normal_(0, 4)
                linear.bias.zero_()
    finally:
        sys.path = path
        for name in [name for name in sys.modules if name.startswith("ownpackage")]:
            del sys.modules[name]
    data = {"kind": "folder", "options": {"image_size": 16}}
    facts = {"recipe": {"task": "fine", "data": data}}
    return dsn_models.save(gated, folder / "gated.safetensors", **facts)


@pytest.fixture
def from_folder(gated_file, monkeypatch):
    """Commands run in the folder of ``gated_file``; what they import is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(gated_file.parent)
    yield gated_file
    for name in [name for name in sys.modules if name.startswith("ownpackage")]:
        del sys.modules[name]


@pytest.mark.long
def test_a_network_learns_to_skip_within_a_share_of_its_time(own, dsn):
    arguments = ["--arch", ARCH, "--option", "classes=3", "--data", "data", *OPTIONS, "--target", "latency=0.9"]
    status, _, error = dsn("gate", "weights.pth", *arguments, "--out", "gated.safetensors")
    assert status == 0, error
    costs = json.loads((own / "gated.costs.json").read_text())
    assert len(costs["gates"]["units"]) == 3 and costs["unit"] == "ms"
    facts = checkpoints.read_metadata("gated.safetensors")
    assert facts["recipe"]["policy"]["costs"] == "gated.costs.json"
    assert 0 < facts["history"][-1]["latency"] <= 1
    status, out, error = dsn(
        "gate", "weights.pth", *arguments, "--target", "latency=0.001", "--out", "again.safetensors"
    )
    assert (status, out) == (2, "") and "of the time is left with every unit skipped" in error


@pytest.mark.long
def test_a_network_learns_to_skip(own, dsn):
    arguments = ["--arch", ARCH, "--option", "classes=3", "--data", "data", "--out", "gated.safetensors"]
    status, out, error = dsn("gate", "weights.pth", *arguments, *OPTIONS, "--epochs", 5, "--distillation", 0.1)
    assert status == 0, error
    assert "other commands take it with --arch ownpackage.networks:network" in out
    assert "as it was given the network is right for" in error
    model = dsn_models.load("gated.safetensors", ARCH)
    assert model.config.units == ("1", "2", "3")
    assert (model.config.arch, model.config.options, model.config.kind) == (ARCH, {"classes": 3}, "pooled")
    facts = checkpoints.read_metadata("gated.safetensors")
    found = facts["test"]["fine"]
    assert found["accuracy"] > 0.8 > facts["test"]["given"]["fine"]["accuracy"]
    assert 0.3 < found["macs"] < 0.95
    assert facts["recipe"]["gating"] == {"weights": "weights.pth", "units": ["auto"], "kind": "pooled"}
    status, out, error = dsn("eval", "gated.safetensors", "--arch", ARCH, "--data", "data", "--json", "-")
    assert status == 0, error
    evaluated = json.loads(out)
    assert evaluated["backend"] == "cpu"
    assert evaluated["fine"]["accuracy"] == found["accuracy"]
    assert evaluated["fine"]["ran"] == found["ran"]


@pytest.mark.long
def test_an_interrupted_run_goes_on_within_its_epoch(own, dsn, monkeypatch):
    arguments = ["weights.pth", "--arch", ARCH, "--data", "data", *OPTIONS, "--json", "-"]
    assert dsn("gate", *arguments, "--out", "whole.safetensors")[0] == 0
    loss, steps = ConstructedObjective.loss, []

    def interrupted(self, *args):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, *args)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(ConstructedObjective, "loss", interrupted)
            status, _, error = dsn("gate", *arguments, "--out", "parts.safetensors")
        assert status == 130
        assert "the state is in parts.state; the same command goes on from there" in error
        assert not (own / "parts.safetensors").exists()
        assert len(steps) == 2  # the step at hand was finished, no other begun
        status, _, error = dsn("gate", *arguments, "--out", "parts.safetensors")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 0, error
    whole, parts = (dsn_models.load(f"{name}.safetensors", ARCH).state_dict() for name in ("whole", "parts"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("eval", ["--data", "data", "--controls"]),
        ("bench", ["--batch", "2", "--gates", "trained,random:0.5", "--against", "eager", "--seconds", "0.05"]),
        ("timeline", ["--batch", "2", "--runs", "1", "--costs", "costs.json"]),
        ("sweep", ["--data", "data", "--thresholds", "2", "--seconds", "0.05"]),
        pytest.param("report", ["--data", "data", "--seconds", "0.05", "--thresholds", "0"], marks=pytest.mark.long),
    ],
)
def test_commands_take_the_checkpoint(from_folder, dsn, command, options):
    arguments = [command, "gated.safetensors", *options, "--threads", "1"]
    status, out, error = dsn(*arguments)
    assert (status, out) == (2, "")
    assert f"if you trust that code, name it: --arch {ARCH}" in error
    assert error.count("\n") == 1
    assert not any(name.startswith("ownpackage") for name in sys.modules)
    status, out, error = dsn(*arguments, "--arch", f"another:one,{ARCH}")
    assert status == 0, error


def test_what_is_named_may_come_from_the_environment(from_folder, dsn, monkeypatch):
    monkeypatch.setenv("DSN_ARCH", ARCH)
    status, _, error = dsn("eval", "gated.safetensors", "--data", "data")
    assert status == 0, error


def test_another_constructor_is_not_enough(from_folder, dsn):
    status, out, error = dsn("eval", "gated.safetensors", "--arch", "os:system", "--data", "data")
    assert (status, out) == (2, "")
    assert "--arch names os:system, nothing was imported" in error


def test_its_gates_can_be_held_at_a_pattern(from_folder):
    sys.path.append(str(from_folder.parent))
    model = dsn_models.load(from_folder, ARCH)
    pattern = torch.tensor([[1, 0, 0, 1]], dtype=torch.uint8)
    model.hold_gates({"units": pattern})
    dsn_models.save(model, "held.safetensors")
    again = dsn_models.load("held.safetensors", ARCH)
    again(torch.rand(5, 3, 16, 16))
    assert torch.equal(again.last_gates["units"], pattern.expand(5, -1))
    bare, _ = dsn_models.gate(own_network(), torch.rand(2, 3, 16, 16))
    with pytest.raises(dsn_models.UserError, match="the network was gated without its constructor"):
        bare.hold_gates({"units": pattern})


def test_a_threshold_for_each_unit_is_kept(from_folder, dsn):
    sys.path.append(str(from_folder.parent))
    model = dsn_models.load(from_folder, ARCH)
    set_operating_point(model, {"units": 0.5}, {"units": [0.1, 0.3, 0.6, 0.9]})
    dsn_models.save(model, "moved.safetensors")
    again = dsn_models.load("moved.safetensors", ARCH)
    assert again.config.layer_thresholds == (0.1, 0.3, 0.6, 0.9)
    images = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        run(again, images)
    expected = again.last_scores["units"] > torch.tensor([0.1, 0.3, 0.6, 0.9])
    assert torch.equal(again.last_gates["units"].bool(), expected)
    assert 0 < expected.double().mean() < 1


def missing_from(state):
    return {key: tensor for key, tensor in state.items() if not key.startswith("module.0.")}


CASES = [
    (["--arch", "ownpackage.networks"], "expected package.module:function"),
    (["--arch", "absent.package:network"], "absent.package cannot be imported (ModuleNotFoundError: No module named"),
    (["--arch", "ownpackage.networks:netwrok"], "ownpackage.networks has no netwrok; near it: network"),
    (["--arch", "ownpackage.networks:limit"], "a int; expected a function that returns a network"),
    (["--arch", "ownpackage.networks:broken"], "fails when called with (): RuntimeError: no such file: weights.bin"),
    (["--arch", "ownpackage.networks:number"], "returns a int; expected a function that returns a torch.nn.Module"),
    (["--option", "depth=3"], "fails when called with (depth=3): TypeError: "),
    (["--option", "depth"], "option is 'depth'; expected KEY=VALUE"),
    (["--option", "width=16"], "0.0.weight is [8, 3, 3, 3], the network's [16, 3, 3, 3]"),
    (["--option", "units=5"], "4.conv.weight is missing"),
    (["--option", "units=1"], "2.conv.weight is left over"),
    (["--target", "0.6"], "target is '0.6'; expected macs=S"),
    (["--target", "macs=60"], "target is 'macs=60'; expected macs=S"),
    (["--target", "macs=0.05"], "of the MACs are left with every unit skipped"),
    (["--units", "layer4.*"], "units has 'layer4.*', which matches no module"),
    (["--units", "0"], "units has '0', but 0 maps [1, 3, 16, 16] to [1, 8, 8, 8]"),
    (["--gate-kind", "spiral"], "gating.kind is 'spiral'"),
    (["--data", "absent"], "data folder is absent"),
    (["--data", "ownpackage"], "do not tell what data it holds: choose with --kind; pictures lie in train/CLASS"),
    (["--mean", "0.5,0.5,0.5"], "--std is missing"),
    (["--task", "medium"], "task is 'medium'"),
    (["--lr", "0"], "train.lr is 0.0"),
    (["--out", "weights.pth/gated.safetensors"], "weights.pth is a file"),
    (["--out", "gated.pth"], "expected a name that ends in .safetensors"),
]


@pytest.mark.parametrize(
    ("options", "message"), CASES, ids=lambda value: " ".join(value) if type(value) is list else ""
)
def test_a_mistake_is_one_line(own, dsn, options, message):
    defaults = {"--arch": ARCH, "--data": "data", "--out": "gated.safetensors", "--image-size": "16"}
    defaults = {key: value for key, value in defaults.items() if key not in options}
    flat = [word for pair in defaults.items() for word in pair]
    status, out, error = dsn("gate", "weights.pth", *flat, "--epochs", 1, *options)
    assert (status, out) == (2, "")
    assert message in error
    assert error.startswith("dsn: error: ")
    assert error.count("\n") == 1
    assert not [path for path in own.iterdir() if path.suffix in (".safetensors", ".state")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK no archive", "is cut short or is no file of weights"),
        (b"<html>", "a web page; download the file itself"),
        (None, "no file weights.pth"),
    ],
)
def test_a_file_of_no_weights(own, dsn, content, message):
    (own / "weights.pth").unlink()
    if content is not None:
        (own / "weights.pth").write_bytes(content)
    status, out, error = dsn("gate", "weights.pth", "--arch", ARCH, "--data", "data", "--out", "gated.safetensors")
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_pickle_runs_no_code(own, dsn):
    torch.save({"state_dict": own_network().state_dict(), "run": os.system}, "weights.pth")
    status, out, error = dsn("gate", "weights.pth", "--arch", ARCH, "--data", "data", "--out", "gated.safetensors")
    assert (status, out) == (2, "")
    assert "holds objects that could run code; refused" in error


def test_a_network_without_logits(own, dsn):
    torch.save({"weight": torch.ones(1)}, "weights.pth")
    arguments = ["--arch", "ownpackage.networks:pair", "--data", "data", "--out", "gated.safetensors"]
    status, _, error = dsn("gate", "weights.pth", *arguments)
    assert status == 2
    assert "weight is left over" in error


def test_no_unit(own, dsn):
    write_weights(own / "flat.pth", units=0)
    options = ["--option", "units=0", "--data", "data", "--out", "gated.safetensors", "--image-size", 16]
    status, _, error = dsn("gate", "flat.pth", "--arch", ARCH, *options)
    assert status == 2
    assert "the Sequential has no residual unit that keeps its map's shape and runs once" in error


def test_a_network_of_other_classes_gets_a_fresh_classifier(own, dsn):
    write_weights(own / "five.pth", classes=5)
    arguments = ["five.pth", "--arch", "ownpackage.networks:counted", "--data", "data", *OPTIONS, "--out", "new/gated"]
    status, _, error = dsn("gate", *arguments, "--option", "num_classes=5")
    assert status == 0, error
    assert "the data has 3 classes, five.pth another number: 4.2.weight, 4.2.bias begin anew" in error
    model = dsn_models.load("new/gated.safetensors", arch="ownpackage.networks:counted")
    assert model.config.classes == 3 and model.config.options == {"num_classes": 3}
    assert model.class_names == sorted(["red", "green", "blue"])
    status, _, error = dsn("gate", *arguments, "--option", "num_classes=5", "--distillation", 1, "--no-resume")
    assert status == 2 and "--distillation is of answers of five.pth, which has other classes" in error


def test_other_classes(own, dsn):
    write_weights(own / "five.pth", classes=5)
    options = ["--option", "classes=5", "--data", "data", "--out", "gated.safetensors", "--image-size", 16]
    status, _, error = dsn("gate", "five.pth", "--arch", ARCH, *options)
    assert status == 2
    assert "the network tells 5 classes apart, the data has 3 classes" in error


def test_gates_that_are_alike_for_all_images_are_told():
    from dsn_kernels.cli.gate import told_alike

    assert told_alike([0.0, 1.0, 0.0, 1.0]).startswith(
        "note: every gate does the same for all test images: 2 of 4 units"
    )
    assert told_alike([0.0, 0.5, 1.0]) == "" and told_alike([]) == ""
