"""What the tests of pages share: a reader that checks their form, and a browser to open them in."""

import html.parser
import re
import shutil
import subprocess

import pytest

PROBE = """<script>addEventListener("load", () => {
  const focusable = document.querySelectorAll("a[href], summary, [tabindex='0']");
  let reached = 0;
  for (const element of focusable) { element.focus(); reached += document.activeElement === element; }
  const loaded = [...document.images].filter(i => i.naturalWidth > 0).length;
  const asked = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length;
  const drawn = [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 250).length;
  parent.document.title = ["width", document.documentElement.scrollWidth, innerWidth, "focus", reached,
    focusable.length, "paper", getComputedStyle(document.body).backgroundColor, "images", loaded, "requests", asked,
    "figures", drawn].join(" ");
});</script>"""


class Reader(html.parser.HTMLParser):
    """Keeps tags, links and ids; fails on a tag that does not close."""

    VOID = {"meta", "img", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.unreachable = [], [], [], set(), 0
        self.feed(page)

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
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()


def in_a_browser(page, folder, width, dark=False):
    """What a real browser makes of a page ``width`` pixels wide, as PROBE tells it. Skips where there is no browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here to open the page in")
    probed = page.replace("</body>", PROBE + "</body>").replace("&", "&amp;").replace('"', "&quot;")
    # A window cannot be as narrow as a phone, a frame can.
    frame = f'<!doctype html><title></title><iframe srcdoc="{probed}" style="width:{width}px;height:800px;border:0">'
    (folder / "frame.html").write_text(frame)
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    words = r"width (\d+) (\d+) focus (\d+) (\d+) paper (.*?) images (\d+) requests (\d+) figures (\d+)"
    found = re.search(f"<title>{words}<", done.stdout)
    assert found, done.stderr[-2000:]
    keys = ("width", "window", "reached", "focusable", "paper", "images", "requests", "figures")
    return {key: value if key == "paper" else int(value) for key, value in zip(keys, found.groups(), strict=True)}
