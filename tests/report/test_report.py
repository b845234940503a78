"""The report of a network: its facts, its page, its figures, and the page in a browser."""

import json
import re

import numpy as np
import pytest
import torch
from markupsafe import escape
from pages import Reader, in_a_browser

import dsn_kernels
import dsn_models
from dsn_kernels.measure import baselines
from dsn_kernels.measure.records import Labelled, read, record
from dsn_kernels.report.feature_maps import feature_maps
from dsn_kernels.report.figures import classes_figure, embedding_figure
from dsn_kernels.report.plots import PRINT
from dsn_kernels.report.report import report
from dsn_models import UserError
from dsn_models.controls import CONTROLS, controls, told
from dsn_models.data import open_dataset


def make(name, **options):
    torch.manual_seed(1)
    model = dsn_models.create(name, **options).eval()
    for parameter_name, weight in model.named_parameters():
        if "gate" in parameter_name and weight.dim() == 2:
            torch.nn.init.normal_(weight, std=1.0)
    return model


def read_clusters(data):
    return set(data.clusters.members.flatten().tolist())


@pytest.fixture(scope="module")
def data():
    return read(open_dataset("navon-sklearn", None, False, 40, canvas=16, glyph=4), "both")


@pytest.fixture(scope="module")
def model():
    return make("dsn-navon", image_size=16, block_layers=(2, 2))


@pytest.fixture(scope="module")
def made(model, data):
    options = {"sweep_steps": 1, "batches": (1, 4, 64), "seconds": 0.0, "cards": 3, "against": ("channels_last",)}
    return report(model, "tiny <b>", data, **options)


@pytest.mark.long
def test_facts(made, model, data):
    document = made.document
    assert document == json.loads(json.dumps(document, allow_nan=False))
    kept = record(dsn_kernels.accelerate(model), data)
    assert document["images"] == 40 and document["macs_executed"]["mean"] == pytest.approx(kept.macs.mean().item())
    rows = document["macs_rows"]
    assert rows["executed"] == pytest.approx(kept.macs.mean().item()) and rows["executed"] <= rows["all gates open"]
    ran, opened, dense = rows["executed"], rows["all gates open"], rows["dense"]
    saved = {"fused": 1 - opened / dense, "gates": 1 - ran / opened, "both": 1 - ran / dense}
    assert document["macs_saved"] == pytest.approx(saved) and saved["fused"] > 0
    first, second = document["headlines"]
    assert f"MACs {100 * saved['gates']:.1f} %." in first  # not what pooling first saves
    assert second.startswith("Kernels, all gates open, beside the fastest of eager PyTorch, channels_last: ")
    assert first in made.page and made.page.index(first) < made.page.index(second)
    assert f"the kernels do\n{100 * saved['fused']:.1f} % fewer MACs than the dense network" in made.page
    sources = read_clusters(data)
    assert document["sampled"]["what"] == "digits" and document["sampled"]["sources"] == len(sources)
    assert f"The images are made of {len(sources)} digits and share them" in made.page
    assert document["thresholds"] == {"coarse": 0.5, "fine": 0.5}
    with torch.no_grad():
        logits = dict(zip(("coarse", "fine"), model(data.images), strict=True))
    for task, labels in data.labels.items():
        hits = sum(int(label) in row.topk(5).indices for row, label in zip(logits[task], labels, strict=True))
        top5 = document["tasks"][task]["top5"]
        assert top5["mean"] == pytest.approx(hits / 40) and top5["low"] < top5["mean"] < top5["high"]
        assert f"top 5: {100 * top5['mean']:.1f} %" in made.page  # as dsn eval tells it
        wrong = (kept.predictions[task] != labels).double().mean().item()
        assert document["tasks"][task]["error"]["mean"] == pytest.approx(wrong)
        classes = document["classes"][task]
        assert [row["images"] for row in classes] == labels.bincount(minlength=10).tolist()
        right = sum(row["images"] * row["accuracy"]["mean"] for row in classes if row["images"])
        assert right == pytest.approx(40 * (1 - wrong))
        kinds = document["kinds"][task]
        assert kinds["always_on"] + kinds["always_off"] + kinds["input_dependent"] == kinds["gates"] == 4
    assert [row["batch"] for row in document["latency"]] == [1, 4]  # there are fewer images than 64
    for row in document["latency"]:
        dense = {"dense": row["dense_ms"], **row["baselines_ms"]}
        assert list(dense) == ["dense", "channels_last"] and row["missing"] == {}
        fastest = min(times["median"] for times in dense.values())
        assert dense[row["fastest"]]["median"] == fastest
        assert row["speedup"] == pytest.approx(fastest / row["skipping_ms"]["median"])
        assert row["gates"] * row["kernels"] == pytest.approx(row["speedup"])
    assert document["sweep"]["images"] == {"pick": 20, "check": 20}
    assert document["reference"] == {
        "images": 40,
        "same_gates": 1.0,
        "relative_difference": document["reference"]["relative_difference"],
    }
    assert document["reference"]["relative_difference"] < 1e-4


@pytest.mark.long
def test_page_is_one_sound_file(made):
    page = made.page
    reader = Reader(page)
    assert reader.open == [] and reader.unreachable == 0 and page.lstrip().startswith("<!doctype html>")
    assert all(link.startswith("data:image/png;base64,") or link[1:] in reader.ids for link in reader.links)
    assert reader.tags.count("svg") == len(made.drawings)
    assert "tiny &lt;b&gt;" in page and "tiny <b>" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page and "<script" not in page
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]\b", page)  # every colour of a figure is the page's
    sections = {"summary", "controls", "cost", "sweep", "layers", "gates", "classes", "images", "features"}
    assert sections | {"environment"} <= reader.ids


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.long
def test_page_in_a_browser_of_a_phones_width(made, tmp_path, dark):
    seen = in_a_browser(made.page, tmp_path, 375, dark)
    assert seen["window"] == 375 and seen["width"] <= 375  # the page does not scroll sideways
    assert seen["reached"] == seen["focusable"] > 10 and seen["requests"] == 0
    assert seen["images"] == 9 and seen["figures"] == len(made.drawings)
    assert seen["paper"] == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")


@pytest.mark.long
def test_a_baseline_that_cannot_be_had_is_a_note(model, data, monkeypatch):
    def missing(dense, images):
        raise ImportError("no module", name="openvino")

    monkeypatch.setitem(baselines.BASELINES, "openvino", missing)
    options = {"sweep_steps": 0, "batches": (1,), "seconds": 0.0, "cards": 1, "against": ("openvino",)}
    made = report(model, "tiny", data, **options)
    assert made.document["notes"] == ["Not timed: openvino, not installed: pip install openvino."]
    assert "dense, openvino" not in made.page


@pytest.mark.long
def test_the_page_says_for_whom_the_gates_open(made, model, data):
    """The table is that of ``dsn eval --controls``: the same function, of the same images."""
    options = {"task": "both", "network": dsn_kernels.accelerate(model)}
    found = controls(model, open_dataset("navon-sklearn", None, False, 40, canvas=16, glyph=4), **options)
    assert made.document["controls"] == found
    tables, lines = told(found)
    assert [row[0] for row in tables[0].rows] == list(CONTROLS.values())
    for text in (*(cell for table in tables for row in table.rows for cell in row), *lines):
        assert str(escape(text)) in made.page


def test_controls_are_left_out_where_none_are_wanted_or_images_are_few(model, data):
    options = {"sweep_steps": 0, "batches": (1,), "seconds": 0.0, "cards": 1}
    for some, wanted in ((data, False), (data.part(torch.arange(7)), True)):
        made = report(model, "tiny", some, controls=wanted, **options)
        assert "controls" not in made.document and 'href="#controls"' not in made.page


def test_figures_are_files_too(made):
    names = [drawing.name for drawing in made.drawings]
    assert len(set(names)) == len(names)
    assert {"latency", "macs", "sweep-macs", "kinds-fine", "gates-coarse", "classes-fine", "features"} <= set(names)
    (features,) = (drawing for drawing in made.drawings if drawing.name == "features")
    assert features.file("png").startswith(b"\x89PNG")
    svg = features.file("svg")
    assert svg.startswith(b"<?xml") and svg.count(b"<image") == 4 * 2 * 3  # image, shared, transition 1; two branches


@pytest.mark.parametrize(
    "name, options, columns",
    [
        ("dsn-navon", {"image_size": 16, "block_layers": (1, 1)}, ["shared", "transition 1"]),
        ("skipnet-38-rnn", {"stage_units": (2, 1, 1)}, ["shared", "stage 1", "stage 2", "stage 3"]),
        ("gaternet-resnet-20", {}, ["shared", "stage 1", "stage 2", "stage 3"]),
    ],
)
def test_feature_maps_are_scaled_means_of_absolute_features(name, options, columns):
    model = make(name, **options)
    config = model.config
    images = torch.randn(2, config.in_channels, config.image_size, config.image_size)
    maps = feature_maps(model, images)
    for row in maps.values():
        assert list(row) == columns
        for cells in row.values():
            assert cells.amin((1, 2)).abs().max() == 0 and (cells.amax((1, 2)) == 1).all()
    with torch.inference_mode():
        first = getattr(model, "backbone", model).stem(images).abs().mean(1)
    expected = (first - first.amin((1, 2), True)) / (first.amax((1, 2), True) - first.amin((1, 2), True))
    torch.testing.assert_close(next(iter(maps.values()))["shared"], expected)
    assert feature_maps(dsn_models.create("lenet", image_size=32).eval(), torch.zeros(1, 1, 32, 32)) == {}


def test_points_at_one_place_lie_apart():
    figure = embedding_figure(np.repeat([[0.0, 0.0], [1.0, 1.0]], 3, 0), np.zeros(6, int), ["0"], PRINT)
    (dots,) = figure.axes[0].collections
    places = np.asarray(dots.get_offsets())
    assert len(np.unique(places, axis=0)) == 6
    assert np.abs(places[:3]).max() < 0.05 and np.abs(places[3:] - 1).max() < 0.05


def test_a_class_without_images_leaves_a_gap():
    figure = classes_figure(np.array([[0.0, 1.0], [np.nan, np.nan]]), [1, 1], ["0", "1"], "layer", PRINT)
    shown = figure.axes[0].images[0].get_array()
    assert shown[0].tolist() == [100, 0] and np.ma.getmaskarray(shown)[1].all()


@pytest.mark.long
@pytest.mark.parametrize(
    "name, options",
    [
        ("skipnet-38-rnn", {"stage_units": (2, 2, 2)}),
        ("gaternet-resnet-20", {"gater_options": {"stage_units": (1, 1, 1)}}),
        ("lsn-navon", {"image_size": 16, "block_layers": (2, 2)}),
    ],
)
def test_other_families(name, options):
    model = make(name, **options)
    config = model.config
    images = torch.rand(8, config.in_channels, config.image_size, config.image_size)
    tasks = ("coarse", "fine") if isinstance(config.classes, tuple) else ("fine",)
    labels = {task: torch.arange(8) % 9 for task in tasks}
    names = {tasks[-1]: [f"kind {i}" for i in range(10)]}
    made = report(model, name, Labelled(images, labels, names), sweep_steps=1, batches=(1,), seconds=0.0, cards=1)
    whose = "fine class" if len(tasks) > 1 else "class"
    note = f"The data holds no image of {whose} kind 8, kind 9."
    assert made.document["notes"][-1] == note and note in made.page and "sweep" in made.document
    cells = {"skipnet-38-rnn": 5, "gaternet-resnet-20": 9, "lsn-navon": 4}
    assert sum(len(block) for block in next(iter(made.document["ran"].values()))) == cells[name]
    assert [len(block) for block in made.document["cells"]] == [
        len(block) for block in next(iter(made.document["ran"].values()))
    ]
    if name == "skipnet-38-rnn":  # its cells are numbered as in its timeline
        steps = dsn_kernels.timeline(dsn_kernels.accelerate(model), images, runs=1).steps
        gated = dict.fromkeys(step.rpartition(".gate")[0] for step in steps if ".gate" in step)
        assert [cell for block in made.document["cells"] for cell in block] == [*gated]
    assert Reader(made.page).open == []
    shown = re.sub(r"<style>.*?</style>|class=", "", made.page, flags=re.S)
    assert bool(re.search(r"\b(fine|coarse|branch)\b", shown)) == (len(tasks) > 1)  # one task has no name


def test_refuses(model, data):
    with pytest.raises(UserError, match="resnet has no gates to report on"):
        report(dsn_models.create("resnet-20"), "resnet", data)
    with pytest.raises(UserError, match="unknown baseline 'tvm'; expected one of eager"):
        report(model, "tiny", data, against=("tvm",))
    with pytest.raises(UserError, match="there are 1 images; expected two or more"):
        report(model, "tiny", data.part(torch.arange(1)))
