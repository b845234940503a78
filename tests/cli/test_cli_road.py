"""docs/road.md: its very commands, run from an empty folder with small budgets, print what it shows."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))
from released_resnet import released

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "road.md").read_text()
SHARED = Path(os.environ.get("DSN_DATA", ROOT.parent / "shared" / "data"))
WEIGHTS = "resnet32-cifar10.th"
CLASSES = {"cat": (200, 40, 40), "dog": (40, 200, 40), "ship": (40, 40, 200)}

# What makes a command of the page short; nothing else is changed but the folder that stands for DIR.
BUDGETS = {
    "gate": ("--iterations", 3, "--batch", 16),
    "eval": ("--images", 60),
    "bench": ("--batch", 1, "--against", "eager,channels_last", "--seconds", 0),
    "sweep": ("--images", 60, "--thresholds", 2, "--seconds", 0.02),
    "predict": (),
    "report": ("--images", 40, "--thresholds", 1, "--seconds", 0, "--against", "channels_last"),
}


def section(title):
    """The commands under a heading, and what each prints: ``[(words, text)]``."""
    body = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]
    blocks = re.findall(r"```sh\n(dsn .*?)\n```\n+```text\n(.*?)```", body, re.S)
    return [(shlex.split(command)[1:], text) for command, text in blocks]


def skeleton(text):
    """The kinds of lines in a text: titles, heads of tables and sentences, without numbers, names of runtimes and what
    a small budget changes."""
    kinds = set()
    for line in text.splitlines():
        if re.match(r"[┏┡└│├╇]", line) or "units." in line or line.startswith(("epoch ", "...")):
            continue
        line = re.sub(
            r"(?<=the fastest of )[^:]*|onnxruntime|openvino|eager PyTorch|channels_last|eager", "RUNTIME", line
        )
        line = re.sub(r"= \([^)]*\)", "0x", line)
        line = re.sub(r" \(within noise\)|, (reached|missed).*|: kept|: NOT KEPT", "", line)
        line = re.sub(r"-?\d+([.,]\d+)*", "0", line)
        line = re.sub(r"(, [^,;:]*? at batch 0)+", "", line)
        line = re.sub(r"units \S+$|a threshold per layer$|all images take.*|-?\+?0 \(.*0\)$", "", line)
        kinds.add(re.sub(r"(┃ (RUNTIME|compile|freeze) )+", "┃ RUNTIMES ", " ".join(line.split())))
    return kinds


def check(dsn, title, data):
    shown = section(title)
    assert [words[0] for words, _ in shown] == ["gate", "eval", "bench", "sweep", "predict", "report"]
    for words, text in shown:
        given = [str(data) if word in ("DIR", "pictures") else word for word in words]
        status, out, error = dsn(*given, *BUDGETS[words[0]])
        assert status == 0, error
        wanted = {line for line in skeleton(text) if not line.startswith("note: every gate does the same")}
        assert wanted <= skeleton(out + error), f"{words[0]}: {wanted - skeleton(out + error)}"
    assert Path("dsn-report.html").exists()


def test_the_readme_has_the_same_road():
    shown = re.findall(r"^dsn .*$", PAGE.partition("\n## ")[0], re.M)
    readme = re.search(r"```sh\n(dsn gate .*?)\n```", (ROOT / "README.md").read_text(), re.S)[1]
    plain = [re.sub(r" +# .*", "", line) for line in readme.splitlines()]
    assert plain == shown == [shlex.join(["dsn", *words]) for words, _ in section("A released network")]


@pytest.mark.long
def test_a_released_network(dsn, tmp_path):
    archives = [SHARED / f"cifar10-jpeg-{part}.npz" for part in ("train", "test")]
    for file in (SHARED / WEIGHTS, *archives):
        if not file.exists():
            pytest.skip(f"{file.name} is not here (DSN_DATA names its folder)")
    shutil.copy(SHARED / WEIGHTS, tmp_path)
    (tmp_path / "data").mkdir()
    for file in archives:  # a few of its images, spread over the classes
        with np.load(file) as archive:
            jpeg, offsets, labels = (archive[key] for key in ("jpeg", "offsets", "labels"))
        chosen = np.arange(96) * len(labels) // 96
        parts = [jpeg[offsets[i] : offsets[i + 1]] for i in chosen]
        ends = np.cumsum([0, *map(len, parts)]).astype(np.int32)
        np.savez(tmp_path / "data" / file.name, jpeg=np.concatenate(parts), offsets=ends, labels=labels[chosen])
    for name, part in (("cat", parts[30]), ("dog", parts[50])):
        (tmp_path / f"{name}.jpg").write_bytes(part.tobytes())
    check(dsn, "A released network", "data")


@pytest.mark.long
def test_a_folder_of_pictures(dsn, tmp_path):
    """Of three classes; the weights are a small stand-in of the released file's format."""
    torch.save(released((2, 2, 2), (8, 8, 8), stem=8, projection=None), tmp_path / WEIGHTS)
    random = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 24)):
        for name, colour in CLASSES.items():
            (tmp_path / "own" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = (random.normal(0, 30, (40, 48, 3)) + colour).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / part / name / f"{i}.jpg")
    for name in ("cat", "dog"):
        shutil.copy(tmp_path / "own" / "test" / name / "0.jpg", tmp_path / f"{name}.jpg")
    check(dsn, "A folder of pictures", "own")
