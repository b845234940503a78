"""Runs the CPU benchmark and holds it against what the project promises: ``python benchmarks/cpu.py [RUN ...]``.

Writes ``benchmarks/results/MACHINE.RUN.json``, the documents of ``dsn bench`` and, of the run ``kernels``, medians of
pytest-benchmark, and prints every promise kept or BROKEN with the figure measured; exit status 1 if one is broken. The
document tells the same under ``promises`` and, for each broken one, under ``profiles`` where the time went, by kind of
step as ``dsn timeline --kinds`` has them.
Options such as ``--seconds=10`` go to ``dsn bench``; ``--check`` only reads the files that are there. Takes up to half
an hour a run on two cores, most of it in torch.compile. An idle machine, please.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dsn_kernels.measure import Latency, machine
from dsn_kernels.measure.latency import Turn
from dsn_kernels.measure.noise import Noise

RESULTS = Path(__file__).resolve().parent / "results"
RANDOM = "random:0.3,random:0.5,random:0.7"


class Run(NamedTuple):
    """One call of ``dsn bench``; ``options`` go before those of the command line."""

    model: str
    gates: str = f"open,shut,paper,{RANDOM}"
    batches: str = "1,8,64"
    options: tuple[str, ...] = ()


RUNS = {
    "concat-bc-100": Run("concat-bc-100"),
    "concat-40": Run("concat-40", f"open,shut,{RANDOM}"),
    "add-166": Run("add-166"),
    "dsn-121": Run("dsn-121", batches="1,8"),
    "skipnet-110-rnn": Run("skipnet-110-rnn"),
    "skipnet-101-rnn-imagenet": Run("skipnet-101-rnn-imagenet", batches="1,8"),
    "gaternet-resnet-164": Run(
        "gaternet-resnet-164", f"open,shut,{RANDOM},equal:0.5", options=("--option", "gated=all")
    ),
    "gunn-15": Run("gunn-15", "open", options=("--baseline-model", "sunn-15")),
    "gunn-15-one-channel": Run("gunn-15", "open", options=("--option", "segments=240,300,360", "--against", "")),
}


KERNELS = "kernels"
_CHUNKS = 10  # that a kernel's calls are cut into, in their order, to tell its noise


class Promise(NamedTuple):
    """``figure`` of a row is at least, or at most, ``bar``.

    Figures: ``speedup``, times faster than the best dense baseline; ``gflops``; ``realised``, latency saved of MACs
    saved; ``of open``, part of the time with all gates open; ``of X``, times the median of gates X per MAC; ``of run
    R``, times the median of the same row of another run.
    """

    run: str
    batch: int
    gates: str
    figure: str
    sign: str
    bar: float


PROMISES = [
    Promise("concat-bc-100", 64, "open", "speedup", ">=", 2.0),
    Promise("concat-bc-100", 1, "open", "speedup", ">=", 1.6),
    Promise("concat-bc-100", 64, "paper", "speedup", ">=", 2.6),
    Promise("concat-bc-100", 64, "open", "gflops", ">=", 380.0),
    Promise("concat-40", 64, "open", "speedup", ">=", 1.5),
    Promise("add-166", 64, "open", "speedup", ">=", 1.0),
    Promise("dsn-121", 8, "open", "speedup", ">=", 1.0),
    Promise("dsn-121", 1, "paper", "speedup", ">=", 1.3),
    Promise("dsn-121", 8, "paper", "speedup", ">=", 1.3),
    Promise("skipnet-110-rnn", 64, "random:0.5", "speedup", ">=", 1.7),
    Promise("skipnet-110-rnn", 1, "random:0.5", "speedup", ">=", 1.8),
    Promise("skipnet-101-rnn-imagenet", 1, "random:0.3", "speedup", ">=", 1.2),
    Promise("skipnet-101-rnn-imagenet", 8, "random:0.3", "speedup", ">=", 1.2),
    Promise("gaternet-resnet-164", 64, "random:0.5", "speedup", ">=", 1.8),
    Promise("gaternet-resnet-164", 64, "random:0.5", "of equal:0.5", "<=", 1.1),
    *(Promise("gunn-15", batch, "open", "speedup", ">=", 1.5) for batch in (1, 8, 64)),
    *(Promise("gunn-15-one-channel", batch, "open", "of run gunn-15", "<=", 1.5) for batch in (1, 8, 64)),
]


def machine_name() -> str:
    """Processor and cores, fit for a file name."""
    facts = machine.describe()
    words = re.sub(r"\((r|tm)\)|processor|cpu|@", " ", str(facts["cpu"]).lower())
    return "-".join([*re.findall(r"[a-z0-9.]+", words), f"{facts['cores']}-cores"])


def result_file(run: str) -> Path:
    """Where this machine's results of a run are kept."""
    return RESULTS / f"{machine_name()}.{run}.json"


def check_runs(names: list[str]) -> None:
    """Ends with one line if a run is unknown."""
    for name in names:
        if name not in RUNS and name != KERNELS:
            print(f"unknown run {name!r}; expected one of {', '.join([*RUNS, KERNELS])}", file=sys.stderr)
            sys.exit(2)


def measure(name: str, target: Path, options: list[str]) -> int:
    """Measures a run and writes its document; returns the exit status."""
    if name == KERNELS:
        return measure_kernels(target)
    run = RUNS[name]
    command = [sys.executable, "-m", "dsn_kernels", "bench", run.model, "--gates", run.gates]
    command += ["--batch", run.batches, "--json", str(target), *options, *run.options]  # the last of two counts
    return subprocess.run(command).returncode


def profile(run: Run, batch: int, gates: str) -> dict[str, Any]:
    """Where the time of one row goes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "timeline.json"
        command = [sys.executable, "-m", "dsn_kernels", "timeline", run.model, "--gates", gates, "--batch", str(batch)]
        kept = [text for i, text in enumerate(run.options) if "--option" in run.options[max(0, i - 1) : i + 1]]
        subprocess.run([*command, "--json", str(file), *kept], check=True)
        found = json.loads(file.read_text())
    kinds = [kind for kind in found["kinds"] if kind["share"] >= 0.01]
    return {"batch": batch, "gates": gates, "total_ms": found["total_ms"], "threads": found["threads"], "kinds": kinds}


def measure_kernels(target: Path) -> int:
    """As :func:`measure`, of ``benchmarks/test_kernels.py``."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "kernels.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--benchmark-save-data",
            "--benchmark-max-time=0.5",
            f"--benchmark-json={raw}",
        ]
        status = subprocess.run([*command, str(RESULTS.parent / "test_kernels.py")]).returncode
        if status:
            return status
        rows = [kernel_row(entry) for entry in json.loads(raw.read_text())["benchmarks"]]
    document = {
        "schema": 1,
        "model": KERNELS,
        "threads": torch.get_num_threads(),
        "affinity": machine.affinity(),
        **machine.facts(),
        "rows": rows,
    }
    target.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def kernel_row(entry: dict[str, Any]) -> dict[str, Any]:
    """What is kept of pytest-benchmark's entry."""
    seconds = entry["stats"]["data"]
    turns = [Turn([chunk.tolist()]) for chunk in np.array_split(seconds, _CHUNKS) if len(chunk)]
    return {
        "kernel": entry["name"].removeprefix("test_"),
        "ours_ms": Latency.of(seconds).as_dict(),
        "noise": Noise({"kernel": turns}).spread("kernel"),
        "gflops": entry["extra_info"]["gflops"],
    }


def promises(run: str, document: dict[str, Any]) -> list[Promise]:
    """Those of a run, and what is promised of every network whose gates are random or shut."""
    found = [promise for promise in PROMISES if promise.run == run]
    for row in document["rows"]:
        if row["gates"].startswith("random:"):
            found.append(Promise(run, row["batch"], row["gates"], "realised", ">=", 0.90))
        if row["gates"] == "shut" and run == "concat-bc-100":
            found.append(Promise(run, row["batch"], "shut", "of open", "<=", 0.10))
    return found


def figure(promise: Promise, documents: dict[str, dict[str, Any]]) -> float | None:
    """What was measured, or None where a row is not there."""

    def find(run: str, gates: str) -> dict[str, Any] | None:
        rows = documents.get(run, {"rows": []})["rows"]
        return next((row for row in rows if row["batch"] == promise.batch and row["gates"] == gates), None)

    row = find(promise.run, promise.gates)
    if row is None:
        return None
    names = {"speedup": "speedup_vs_best", "gflops": "gflops", "realised": "realised_fraction"}
    if promise.figure in names:
        return row[names[promise.figure]]
    what = promise.figure.removeprefix("of ")
    if what == "open":
        return row["ours_ms"]["median"] / row["ours_open_ms"]["median"]
    if what.startswith("run "):
        other = find(what.removeprefix("run "), promise.gates)
        return None if other is None else row["ours_ms"]["median"] / other["ours_ms"]["median"]
    other = find(promise.run, what)
    return None if other is None else other["gflops"] / row["gflops"]


def verdict(promise: Promise, measured: float | None) -> str:
    if measured is None:
        return "not measured"
    kept = measured >= promise.bar if promise.sign == ">=" else measured <= promise.bar
    return "kept" if kept else "BROKEN"


def judge(name: str, documents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's promises, what was measured of each, and by what part a broken one misses its bar."""
    judged = []
    for promise in promises(name, documents.get(name, {"rows": []})):
        measured = figure(promise, documents)
        told = verdict(promise, measured)
        missed = abs(measured / promise.bar - 1) if measured is not None and told == "BROKEN" else None
        judged.append({**promise._asdict(), "measured": measured, "verdict": told, "missed_by": missed})
    return judged


def tell(name: str, documents: dict[str, dict[str, Any]]) -> None:
    """Adds to a run's document how its promises fared and the profile of each row that breaks one, and of it open."""
    document = documents[name]
    document["promises"] = judge(name, documents)
    broken = [promise for promise in document["promises"] if promise["verdict"] == "BROKEN"]
    rows = {(row["batch"], gates) for row in broken for gates in ("open", row["gates"])}
    document["profiles"] = [profile(RUNS[name], *row) for row in sorted(rows)]
    result_file(name).write_text(json.dumps(document, indent=2) + "\n")


def read_documents() -> dict[str, dict[str, Any]]:
    files = {name: result_file(name) for name in RUNS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def main() -> int:
    options = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    names = [argument for argument in sys.argv[1:] if not argument.startswith("--")] or [*RUNS, KERNELS]
    check_runs(names)
    RESULTS.mkdir(exist_ok=True)
    if "--check" not in options:
        for name in names:
            status = measure(name, result_file(name), options)
            if status:
                return status
            if name in RUNS:
                tell(name, read_documents())
    documents = read_documents()
    broken = 0
    for name in names:
        for promise in judge(name, documents):
            broken += promise["verdict"] == "BROKEN"
            text = f"{name}, batch {promise['batch']}, gates {promise['gates']}: {promise['figure']}"
            measured = "-" if promise["measured"] is None else f"{promise['measured']:.2f}"
            print(f"{promise['verdict']:12} {text} {measured} ({promise['sign']} {promise['bar']:g})")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
