"""The report of a checkpoint: its facts, its page, and the page in a browser."""

import html.parser
import json
import re
import shutil
import subprocess

import pytest
import torch

import dsn_kernels
import dsn_models
from dsn_kernels.measure.model_report import report
from dsn_kernels.measure.records import Labelled, read, record
from dsn_models import UserError
from dsn_models.data import open_dataset


def make(name, **options):
    torch.manual_seed(1)
    model = dsn_models.create(name, **options).eval()
    for parameter_name, weight in model.named_parameters():
        if "gate" in parameter_name and weight.dim() == 2:
            torch.nn.init.normal_(weight, std=1.0)
    return model


@pytest.fixture(scope="module")
def data():
    return read(open_dataset("navon-sklearn", None, False, 40, canvas=16, glyph=4), "both")


@pytest.fixture(scope="module")
def model():
    return make("dsn-navon", image_size=16, block_layers=(2, 2))


@pytest.fixture(scope="module")
def made(model, data):
    return report(model, "tiny <b>", data, sweep_steps=1, batches=(1, 4, 64), seconds=0.0, cards=3)


def test_facts(made, model, data):
    _, document = made
    assert document == json.loads(json.dumps(document, allow_nan=False))
    kept = record(dsn_kernels.accelerate(model), data)
    assert document["images"] == 40 and document["macs_executed"]["mean"] == pytest.approx(kept.macs.mean().item())
    rows = document["macs_rows"]
    assert rows["executed"] == pytest.approx(kept.macs.mean().item()) and rows["executed"] <= rows["every gate open"]
    for task, labels in data.labels.items():
        wrong = (kept.predictions[task] != labels).double().mean().item()
        assert document["tasks"][task]["error"]["mean"] == pytest.approx(wrong)
        classes = document["classes"][task]
        assert [row["images"] for row in classes] == labels.bincount(minlength=10).tolist()
        right = sum(row["images"] * row.get("accuracy", 0) for row in classes)
        assert right == pytest.approx(40 * (1 - wrong))
        kinds = document["kinds"][task]
        assert kinds["always_on"] + kinds["always_off"] + kinds["input_dependent"] == kinds["gates"] == 4
    assert [row["batch"] for row in document["latency"]] == [1, 4]  # there are fewer images than 64
    assert document["sweep"]["images"] == {"pick": 20, "check": 20}


class Reader(html.parser.HTMLParser):
    VOID = {"meta", "img", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.unreachable = [], [], [], set(), 0

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.tags.append(tag)
        self.links += [facts[key] for key in ("src", "href") if key in facts]
        self.ids |= {facts["id"]} if "id" in facts else set()
        scrolls = facts.get("class") == "scroll"
        self.unreachable += scrolls and not (facts.get("tabindex") == "0" and facts.get("aria-label"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)


def test_page_is_one_sound_file(made):
    page, _ = made
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and reader.unreachable == 0 and page.lstrip().startswith("<!doctype html>")
    assert all(link.startswith("data:image/png;base64,") or link[1:] in reader.ids for link in reader.links)
    assert reader.tags.count("img") == 9 and "tiny &lt;b&gt;" in page and "tiny <b>" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page and "<script" not in page
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]\b", page)  # every colour of a figure is the page's


def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here to open the report in")
    return found


PROBE = """<script>addEventListener("load", () => {
  const focusable = document.querySelectorAll("a[href], summary, [tabindex='0']");
  let reached = 0;
  for (const element of focusable) { element.focus(); reached += document.activeElement === element; }
  document.title = ["width", document.documentElement.scrollWidth, innerWidth, "focus", reached, focusable.length,
    "paper", getComputedStyle(document.body).backgroundColor, "images",
    [...document.images].filter(i => i.naturalWidth > 0).length, "requests",
    performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length].join(" ");
});</script>"""


@pytest.mark.parametrize("dark", [False, True])
def test_page_in_a_browser_of_a_phones_width(made, tmp_path, dark):
    page = made[0].replace("</body>", PROBE + "</body>")
    (tmp_path / "report.html").write_text(page)
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--window-size=500,900", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000"]
    command += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--dump-dom", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    title = re.search(
        r"<title>width (\d+) (\d+) focus (\d+) (\d+) paper (.*?) images (\d+) requests (\d+)<", done.stdout
    )
    assert title, done.stderr[-2000:]
    width, window, reached, focusable, paper, images, requests = title.groups()
    assert int(width) <= int(window) and reached == focusable and int(focusable) > 10
    assert images == "9" and requests == "0"
    assert paper == ("rgb(20, 24, 28)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize(
    "name, options",
    [
        ("skipnet-38-rnn", {"stage_units": (2, 2, 2)}),
        ("gaternet-resnet-20", {"gater_options": {"stage_units": (1, 1, 1)}}),
    ],
)
def test_other_families(name, options):
    model = make(name, **options)
    images = torch.rand(8, 3, 32, 32)
    page, document = report(
        model, name, Labelled(images, {"fine": torch.arange(8) % 9}), sweep_steps=1, batches=(1,), seconds=0.0, cards=1
    )
    assert document["notes"] == ["The data holds no image of fine class 8, 9."]
    assert document["notes"][0] in page and ("sweep" in document) == (name == "skipnet-38-rnn")
    assert sum(len(block) for block in next(iter(document["ran"].values()))) == (5 if "skipnet" in name else 9)


def test_refuses(model, data):
    with pytest.raises(UserError, match="resnet has no gates to report on"):
        report(dsn_models.create("resnet-20"), "resnet", data)
    with pytest.raises(UserError, match="there are 1 images; expected two or more"):
        report(model, "tiny", data.part(torch.arange(1)))
