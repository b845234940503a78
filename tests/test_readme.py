"""What the README says is what there is."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.long
def test_the_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "tensor(" in run.stdout


def test_every_command_is_there():
    named = set(re.findall(r"^\| `dsn (\w+)", README, re.M))
    from dsn_kernels.cli import app

    assert named == {command.name for command in app.registered_commands}


def test_every_model_is_there():
    import dsn_models

    (sentence,) = re.findall(r"Models: (.*?) as baselines", README, re.S)
    patterns = [name.replace("*", ".*") for name in re.findall(r"`([\w*-]+)`", sentence)]
    for name in dsn_models.names():
        assert any(re.fullmatch(pattern, name) for pattern in patterns), name
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in dsn_models.names()), pattern


@pytest.mark.parametrize("name", re.findall(r"^\| `([A-Z_]+)(?:=1)?` \|", README, re.M))
def test_every_variable_is_read(name):
    if name == "OMP_NUM_THREADS":
        pytest.skip("torch reads it")
    sources = [ROOT / "setup.py", *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "dsn_kernels").rglob("*.py")]
    assert any(f'"{name}"' in source.read_text() for source in sources)


def test_every_link_leads_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_are_there():
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    targets = set(re.findall(r"^make (\w+)", README, re.M)) | set(re.findall(r"`make (\w+)", README))
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_figures_are_those_of_the_committed_run():
    (path,) = re.findall(r"\[complete\s+here\]\((.*?)\)", README)
    rows = {(row["batch"], row["gates"]): row for row in json.loads((ROOT / path).read_text())["rows"]}
    lines = [re.findall(r"[\d.,]+", line) for line in re.findall(r"^\| (\d+ \|.*x\).*)\|$", README, re.M)]
    assert [int(line[0]) for line in lines] == [1, 8, 64]
    for line in lines:
        batch, *shown = (float(cell.replace(",", "")) for cell in line)
        dense = rows[batch, "open"]["baselines_ms"]
        measured = [dense[name]["median"] for name in ("eager", "onnxruntime", "openvino")]
        for gates in ("open", "paper", "random:0.5"):
            measured += [rows[batch, gates]["ours_ms"]["median"], rows[batch, gates]["speedup_vs_best"]]
        measured += [rows[batch, f"random:{part}"]["realised_fraction"] for part in (0.3, 0.5, 0.7)]
        assert shown == pytest.approx(measured, rel=0.02)
