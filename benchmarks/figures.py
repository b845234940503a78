"""Writes the tables of measured figures into the documents: ``python benchmarks/figures.py [--check]``.

A table stands between ``<!-- figures: NAME -->`` and ``<!-- end of figures -->``. It is made from the committed files
of ``benchmarks/results`` alone, so nobody copies a figure by hand. ``--check`` writes nothing and ends with status 1
where a document differs. Nothing has to be built.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "measuring.md", ROOT / "docs" / "training.md")

MACHINE = "intel-xeon-2.50ghz-2-cores"  # whose figures the documents show
FOREIGN = "amd-epyc-2-cores.foreign"  # and that of networks of others
# In the order of the tables; a network without gates is only ever open.
NETWORKS = (
    "concat-bc-100",
    "concat-40",
    "add-166",
    "dsn-121",
    "skipnet-110-rnn",
    "skipnet-101-rnn-imagenet",
    "gaternet-resnet-164",
    "gunn-15",
)
BASELINES = {"eager": "eager", "channels_last": "channels last", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
RANDOM = ("random:0.3", "random:0.5", "random:0.7")
BATCHES = (1, 8, 64)

Row = dict[str, Any]


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows_of(network: str) -> dict[tuple[int, str], Row]:
    """What `dsn bench` measured of a network, by batch and gates."""
    return {(row["batch"], row["gates"]): row for row in read(f"{MACHINE}.{network}")["rows"]}


def milliseconds(latency: dict[str, float]) -> str:
    """A median to three digits, as in 5.91, 41.9 or 1,379."""
    median = latency["median"]
    return f"{median:,.{max(0, 3 - len(str(int(median))))}f}" if median >= 1 else f"{median:.2f}"


def timed(row: Row | None) -> str:
    return "" if row is None else f"{milliseconds(row['ours_ms'])} ms, {row['speedup_vs_best']:.1f}x"


def times(row: Row | None) -> str:
    return "" if row is None else f"{row['speedup_vs_best']:.2f}x"


def fraction(row: Row | None) -> str:
    return "" if row is None else f"{row['realised_fraction']:.2f}"


def performance() -> Iterator[list[str]]:
    """Ours beside the best dense runtime, all gates open and half of them shut."""
    yield ["network", "gates", *(f"batch {batch}" for batch in BATCHES), "realised fraction"]
    for network in NETWORKS:
        rows = rows_of(network)
        for gates, text in (("open", "all open"), ("random:0.5", "half shut")):
            found = [rows.get((batch, gates)) for batch in BATCHES]
            if not any(found):
                continue
            realised = "" if gates == "open" else " / ".join(fraction(row) for row in found if row)
            yield [f"`{network}`" if gates == "open" else "", text, *map(timed, found), realised]


def baselines() -> Iterator[list[str]]:
    """Milliseconds of the dense network in each runtime, and ours with all gates open."""
    yield ["network", "batch", *BASELINES.values(), "ours, all open"]
    for network in NETWORKS:
        for (batch, gates), row in rows_of(network).items():
            if gates == "open":
                dense = [milliseconds(row["baselines_ms"][name]) for name in BASELINES]
                yield [f"`{network}`", str(batch), *dense, milliseconds(row["ours_ms"])]


def gates() -> Iterator[list[str]]:
    """Times faster than the best dense runtime, and the realised fraction, by what is shut."""
    shut = ["30 %", "50 %", "70 %"]
    yield ["network", "batch", "all open", "paper's ratio", *(f"{part} shut" for part in shut), "all shut"] + [
        f"realised at {part}" for part in shut
    ]
    for network in NETWORKS:
        rows = rows_of(network)
        for batch in BATCHES:
            if (batch, RANDOM[0]) not in rows:
                continue
            found = [rows.get((batch, name)) for name in ("open", "paper", *RANDOM)]
            none = rows[batch, "shut"]
            of_open = f"{none['ours_ms']['median'] / none['ours_open_ms']['median']:.0%} of all open".replace("%", " %")
            realised = [fraction(rows[batch, name]) for name in RANDOM]
            yield [f"`{network}`", str(batch), *map(times, found), of_open, *realised]


def promises() -> Iterator[list[str]]:
    """What is promised beside the realised fraction, and what was measured."""
    yield ["network", "gates", "figure", "promised", *(f"batch {batch}" for batch in BATCHES)]
    for network in (*NETWORKS, "gunn-15-one-channel"):
        by_bar: dict[tuple[str, str, str], dict[int, str]] = {}
        for promise in read(f"{MACHINE}.{network}")["promises"]:
            if promise["figure"] != "realised":
                bar = f"{promise['sign']} {promise['bar']:g}"
                measured = f"{promise['measured']:.3g}" + ("" if promise["verdict"] == "kept" else " BROKEN")
                by_bar.setdefault((promise["gates"], promise["figure"], bar), {})[promise["batch"]] = measured
        for names, measured_by in by_bar.items():
            yield [f"`{network}`", *names, *(measured_by.get(batch, "") for batch in BATCHES)]


def multiply_adds() -> Iterator[list[str]]:
    """The kernels' counters beside what callgrind saw."""
    yield [
        "network",
        "MACs of convolutions by the counters",
        "with blocks of filters filled up",
        "multiply-adds by callgrind",
    ]
    for row in read("count-fma")["rows"]:
        counts = (row["convolutions"], row["with_padding"], row["multiply_adds_of_convolutions"])
        yield [f"`{row['model']}`", *(f"{count:,}" for count in counts)]


def foreign() -> Iterator[list[str]]:
    """Networks that others define: milliseconds beside the dense runtimes, and what gates on their units gain."""
    yield [
        *("network", "batch", "ONNX Runtime", "OpenVINO", "ours", "speed"),
        *("MACs in gated units", "40 % of the gates shut", "realised fraction"),
    ]
    for row in read(FOREIGN)["rows"]:
        ms = {name: milliseconds({"median": time}) for name, time in row["ms"].items()}
        gated = ["", "", ""]
        if "gain" in row:
            gated = [f"{row['gated_share']:.0%}".replace("%", " %"), f"{row['gain']:.2f}x", f"{row['realised']:.2f}"]
        times = [ms["onnxruntime"], ms["openvino"], ms["dense"], f"{row['speed']['dense']:.2f}x"]
        yield [f"`{row['network']}`", str(row["batch"]), *times, *gated]


def learned_gates() -> Iterator[list[str]]:
    """The arms of ``benchmarks/gates.py``: accuracy under own and other gates, beside the dense arm trained as long."""
    controls = ("own", "another", "static", "open")
    yield [
        *(
            "arm",
            "seed",
            "images seen",
            "MACs %",
            "task",
            "own gates",
            "another image's",
            "own gates gain over another's",
        ),
        *("one pattern for all", "all open", "dense, trained as long", "latency saved %, batch 1 / 8 / 64"),
    ]
    arms: dict[tuple[str, int, str, int], Row] = {}
    for path in sorted(RESULTS.glob("gates-*.json")):
        arm, seed = path.stem.removeprefix("gates-").rsplit("-seed", 1)
        document = json.loads(path.read_text())
        arms[arm.split("-")[0], document["images_seen"], arm, int(seed)] = document
    dense = {(*key[:2], key[3]): document for key, document in arms.items() if key[2].endswith("-dense")}
    for (data, seen, arm, seed), document in sorted(arms.items()):
        link = f"[`{arm}`](../benchmarks/results/gates-{arm}-seed{seed}.json)"
        beside = dense.get((data, seen, seed), {"test": {}})["test"]
        learned = document.get("controls")
        shown = [link, str(seed), f"{seen:,}", f"{100 * learned['under']['own']['macs']:.1f}" if learned else "100"]
        for task in (task for task in ("coarse", "fine") if task in document["test"]):
            found, gain = [""] * len(controls), ""
            if learned:
                found = [f"{100 * learned['under'][name][task]['accuracy']:.1f}" for name in controls]
                values = (100 * learned["under"]["another"][task][key] for key in ("gain", "gain_low", "gain_high"))
                gain = "{:.1f} ({:.1f} to {:.1f})".format(*values)
            own, another, *others = found
            as_long = f"{100 * beside[task]['accuracy']:.1f}" if task in beside else ""
            rows = document.get("latency", {"rows": []})["rows"] if shown[0] else []
            saved = " / ".join(f"{100 * row['saved']:.1f}" for row in rows)
            yield [*shown, task, own, another, gain, *others, as_long, saved]
            shown = [""] * len(shown)  # of the second task, what both share


TABLES = {
    table.__name__: table for table in (performance, baselines, gates, promises, foreign, multiply_adds, learned_gates)
}


def markdown(rows: Iterable[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(text: str) -> str:
    """A document with its tables as the results have them."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{markdown(TABLES[match[2]]())}\n\n{match[3]}"

    return re.sub(r"(<!-- figures: (\w+) -->)\n.*?(<!-- end of figures -->)", table, text, flags=re.DOTALL)


def main() -> int:
    stale = [path for path in DOCUMENTS if filled(path.read_text()) != path.read_text()]
    for path in stale:
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} shows other figures than benchmarks/results: run benchmarks/figures.py")
        else:
            path.write_text(filled(path.read_text()))
            print(f"wrote {path.relative_to(ROOT)}")
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
