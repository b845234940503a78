"""The examples of docs/extending.md that make a network skip: they run, learn, and say the words they should."""

import re
from pathlib import Path

import pytest
import torch

from tests.interop import declare_operators

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
(SECTION,) = re.findall(r"^## Making your own network skip\n(.*?)^## ", PAGE, re.S | re.M)
EXAMPLES = re.findall(r"^### (.*?)$.*?```python\n(.*?)```", SECTION, re.S | re.M)
#: Of each example: its words, and the parameters that decide, by a part of their names.
WORDS = [
    ("where_open", 5, "control"),
    ("where_open", 5, "gate.3"),
    ("where_open", 1, "early"),
    ("choose_filters", 2, "saliency"),
    ("where_open", 2, "choice"),
]
CASES = [pytest.param(code, *words, id=title) for (title, code), words in zip(EXAMPLES, WORDS, strict=True)]


@torch.enable_grad()
def run(code):
    if "torchvision" in code:
        declare_operators()
        pytest.importorskip("torchvision", exc_type=ImportError)
    torch.manual_seed(0)
    names = {"__name__": "example"}
    exec(compile(code, "docs/extending.md", "exec"), names)
    return names["model"], names["images"]


@pytest.mark.long
@pytest.mark.parametrize(("code", "word", "count", "deciding"), CASES)
def test_an_example_runs_and_says_its_words(code, word, count, deciding):
    model, images = run(code)
    assert len(code.splitlines()) <= 40
    gradients = [p.grad for name, p in model.named_parameters() if deciding in name]
    assert gradients and all(g.isfinite().all() for g in gradients) and any(g.abs().sum() > 0 for g in gradients)
    model.eval()
    program = torch.export.export(model, (images,), strict=False).run_decompositions()
    targets = [node.target for node in program.graph.nodes]
    for name in ("where_open", "choose_filters"):
        assert targets.count(getattr(torch.ops.dsn, name).default) == (count if name == word else 0)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.long
@torch.no_grad()
def test_an_image_that_is_sure_leaves_early():
    model, images = run(dict(EXAMPLES)["Early exit"])
    model.eval()
    x = model.first(images)
    early, late = model.early(x), model.rest(x)
    confidence = early.softmax(1).amax(1)
    model.confidence = confidence.median().item()
    unsure = confidence < model.confidence
    assert 0 < unsure.sum() < len(images)
    assert torch.equal(model(images), torch.where(unsure[:, None], late, early))


@torch.no_grad()
def test_an_image_takes_one_of_two_branches():
    model, images = run(dict(EXAMPLES)["A choice between two branches"])
    unit = model.eval()[1]
    x = model[0](images)
    unit.choice.bias -= unit.choice(x.mean((2, 3))).median()
    wide = unit.choice(x.mean((2, 3))).squeeze(1) > 0
    assert 0 < wide.sum() < len(images)
    assert torch.equal(unit(x), torch.where(wide[:, None, None, None], unit.wide(x), unit.narrow(x)))


@torch.no_grad()
def test_as_many_filters_are_chosen_as_are_kept():
    model, images = run(dict(EXAMPLES)["Filters chosen by a small net"])
    left = model.eval()[0](images)
    assert (left.flatten(2).any(2).sum(1) <= 16).all() and left.any()
