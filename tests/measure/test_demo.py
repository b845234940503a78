"""The demo's facts and its report."""

import html.parser
import re

import pytest
import torch

import dsn_models
from dsn_kernels.measure.demo import run_demo
from dsn_kernels.measure.report import render
from dsn_models import UserError
from dsn_models.data import open_dataset


@pytest.fixture(scope="module")
def run():
    torch.manual_seed(0)
    model = dsn_models.create("dsn-navon", image_size=16, block_layers=(2, 2)).eval()
    for name, weight in model.named_parameters():
        if ".gates." in name and weight.dim() == 2:
            torch.nn.init.normal_(weight, std=2.0)
    dataset = open_dataset("navon-sklearn", None, False, 12, canvas=16, glyph=4)
    return run_demo(model, "tiny <b>", dataset, batches=(1, 4), seconds=0.0)


def test_facts(run):
    d = run.document
    assert d["images"] == 12 and d["reference"]["same_gates"] and d["reference"]["relative_difference"] < 1e-4
    for branch in ("coarse", "fine"):
        assert d["skipped"][branch] == pytest.approx(1 - run.gates[branch].double().mean().item())
        assert d["accuracy"][branch] == (run.predictions[branch] == run.labels[branch]).double().mean().item()
        assert len(d["ran"][branch]) == 4
    assert d["macs_executed"] < d["macs_dense"]
    assert [row["batch"] for row in d["latency"]] == [1, 4]
    for row in d["latency"]:
        assert row["speedup"] == pytest.approx(row["dense_ms"]["median"] / row["skipping_ms"]["median"])


class Reader(html.parser.HTMLParser):
    """Counts tags and checks that they close."""

    VOID = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)


def test_report_is_one_sound_file(run):
    text = render(run, cards=5)
    reader = Reader()
    reader.feed(text)
    assert reader.open == [] and text.startswith("<!doctype html>")
    assert reader.tags.count("img") == 5 and reader.tags.count("svg") == 1
    assert reader.tags.count("i") == 2 * 4 * (1 + 5)  # both branches' layers: of all images, and of each card
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in reader.sources)
    assert "tiny &lt;b&gt;" in text and "tiny <b>" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]\b", text)  # every colour of the figure is the page's
    for branch in ("coarse", "fine"):
        assert f"{100 * run.document['skipped'][branch]:.1f} %" in text


def test_report_shows_no_more_digits_than_there_are(run):
    assert render(run, cards=100).count("<img") == 12


def test_refuses():
    dataset = open_dataset("navon-sklearn", None, False, 3, canvas=16, glyph=4)
    model = dsn_models.create("dsn-navon", image_size=16)
    with pytest.raises(UserError, match="there are 3 images; expected at least 64"):
        run_demo(model, "tiny", dataset)
    with pytest.raises(UserError, match="no gates to show"):
        run_demo(dsn_models.create("lenet"), "lenet", dataset)
