"""Names of classes that others chose, in figures: drawn as they are written, whatever they hold."""

import warnings
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from dsn_kernels.report.figures import classes_figure, embedding_figure
from dsn_kernels.report.plots import FORMATS, PAGE, inline_svg, picture
from dsn_models import lettering, plots

FORMULAS = ["$x_1$", "a_b^c", r"\frac{1}{2}", "$\\frac$", "price $5", r"\$", "_hidden", "{0} %s"]
MARKUP = ["<b>&amp;</b>", "</svg><script>", "'\"", "]]>", "#010101"]
SCRIPTS = ["日本語", "한국어", "العربية", "עברית", "हिन्दी", "😀👩\u200d👧", "ẞßſ", "Ω≈ç"]
CONTROLS = ["a\nb", "tab\t", "\x1b[31mred", "nul\x00", "\u202eevil", "half \udcff", "\u2028line", "soft\u00adhyphen"]
LONG = ["x" * 41, "n" * 5000, "日" * 200]


@pytest.mark.parametrize(
    "name, shown",
    [
        ("plain name", "plain name"),
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202eevil", r"\u202eevil"),
        ("half \udcff", r"half \udcff"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),  # a joiner belongs to the word
        ("x" * 40, "x" * 40),
        ("a" * 30 + "b" * 30, "a" * 19 + "…" + "b" * 19),
        ("日" * 21, "日" * 9 + "…" + "日" * 9),
    ],
)
def test_shortened(name, shown):
    assert lettering.shortened(name) == shown


@pytest.mark.long
@pytest.mark.parametrize(
    "names", [FORMULAS, MARKUP, SCRIPTS, CONTROLS, LONG], ids=["formulas", "markup", "scripts", "controls", "long"]
)
def test_figures_of_any_names(names):
    """Every format is drawn, without a warning; the text of an SVG is the name itself."""
    places = np.random.default_rng(0).random((len(names), 2))
    labels = np.arange(len(names))
    draws = (
        partial(embedding_figure, places, labels, names),
        partial(classes_figure, np.full((len(names), 3), 0.5), [3], names, "layer"),
    )
    for draw in draws:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            files = {kind: picture(draw, kind) for kind in FORMATS}
            page = inline_svg(draw(PAGE))
        assert files["png"].startswith(b"\x89PNG") and files["pdf"].startswith(b"%PDF")
        for svg in (files["svg"].decode(), page):
            for name in names:
                shown = lettering.shortened(name, 24).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
                assert shown in svg


def test_a_name_with_an_underscore_is_in_the_legend():
    figure = plots.plot_embedding(np.eye(3), np.arange(3), ["_a", "b", "$c$"])
    assert [text.get_text() for text in figure.legends[0].texts] == [" _a", "b", r"\$c\$"]


def test_fonts_for_what_the_usual_one_lacks(monkeypatch):
    """Fonts are asked for their characters; only texts that need one get another after their own."""
    held = {"usual": frozenset("ab"), "one": frozenset("日b"), "other": frozenset("日本"), "none": frozenset()}
    monkeypatch.setattr(lettering, "_characters", lambda path: held.get(path, held["usual"]))
    monkeypatch.setattr("matplotlib.font_manager.fontManager.ttflist", [font(name) for name in held])
    lettering._families.cache_clear()
    figure = Figure()
    plain, foreign, unknown = (figure.text(0, 0, text) for text in ("ab", "a日本", "한"))
    before = plain.get_fontfamily()
    lettering.choose_fonts(figure)
    assert plain.get_fontfamily() == unknown.get_fontfamily() == before
    assert foreign.get_fontfamily() == ["sans-serif", "one", "other"]
    lettering._families.cache_clear()


def font(name):
    from matplotlib.font_manager import FontEntry

    return FontEntry(fname=name, name=name)
