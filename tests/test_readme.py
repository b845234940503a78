"""What the README says is what there is."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import figures

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
PRINTED = ("tensor(", "100.0 % of the multiply-accumulates in kernels")


@pytest.mark.long
@pytest.mark.parametrize(("code", "printed"), list(zip(EXAMPLES, PRINTED, strict=True)))
def test_an_example_runs(code, printed, tmp_path):
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert printed in run.stdout


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


def test_the_figures_are_those_of_the_committed_results():
    check = [sys.executable, ROOT / "benchmarks" / "figures.py", "--check"]
    run = subprocess.run(check, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_figure_that_differs_is_found():
    changed = README.replace("| all open |", "| all shut |")
    assert figures.filled(changed) == README != changed


def test_every_table_of_figures_is_shown():
    shown = [name for page in figures.DOCUMENTS for name in re.findall(r"<!-- figures: (\w+) -->", page.read_text())]
    assert sorted(shown) == sorted(figures.TABLES)


def test_an_arm_stands_beside_the_dense_one_of_its_seed_that_saw_as_many_images(tmp_path, monkeypatch):
    def write(arm, seed, seen, **more):
        test = {"images": 4, "fine": {"accuracy": 0.9 + seed / 100}}
        document = {"images_seen": seen, "test": test, **more}
        (tmp_path / f"gates-{arm}-seed{seed}.json").write_text(json.dumps(document))

    under = {name: {"macs": 0.5, "fine": {"accuracy": 0.8}} for name in ("own", "static", "open")}
    under["another"] = {"macs": 0.5, "fine": {"accuracy": 0.7, "gain": 0.1, "gain_low": 0.05, "gain_high": 0.15}}
    latency = {"rows": [{"saved": 0.4}, {"saved": 0.45}]}
    for seed in (0, 1):
        write("digits-dense", seed, 8)
        write("digits-cost", seed, 8, controls={"under": under}, latency=latency)
    write("digits-long", 0, 16, controls={"under": under})
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    head, *rows = figures.learned_gates()
    told = {(re.search("`(.*)`", row[0])[1], row[1]): dict(zip(head, row, strict=True)) for row in rows}
    assert len(told) == 5 and told["digits-dense", "1"]["MACs %"] == "100"
    row = told["digits-cost", "1"]
    assert row["own gates"] == "80.0" and row["own gates gain over another's"] == "10.0 (5.0 to 15.0)"
    assert row["MACs %"] == "50.0" and row["dense, trained as long"] == "91.0"
    assert row["latency saved %, batch 1 / 8 / 64"] == "40.0 / 45.0"
    assert told["digits-cost", "0"]["dense, trained as long"] == "90.0"
    assert told["digits-long", "0"]["dense, trained as long"] == told["digits-long", "0"][head[-1]] == ""
