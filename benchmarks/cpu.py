"""Runs the CPU benchmark and holds it against what the project promises: ``python benchmarks/cpu.py [MODEL ...]``.

Writes ``benchmarks/results/MACHINE.MODEL.json``, the documents of ``dsn bench``; options such as ``--seconds=10`` go to
it. Takes about half an hour a model on two cores, most of it in torch.compile. An idle machine, please.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from dsn_kernels.measure import machine

RESULTS = Path(__file__).resolve().parent / "results"
GATES = "open,shut,paper,random:0.3,random:0.5,random:0.7"


def machine_name() -> str:
    """Processor and cores, fit for a file name."""
    facts = machine.describe()
    words = re.sub(r"\((r|tm)\)|processor|cpu|@", " ", str(facts["cpu"]).lower())
    return "-".join([*re.findall(r"[a-z0-9.]+", words), f"{facts['cores']}-cores"])


def promises(document: dict) -> list[tuple[str, float, str, float]]:
    """(what, measured, at least or at most, promised) of each promise that the document's rows speak of."""
    rows = {(row["batch"], row["gates"]): row for row in document["rows"]}
    found = []
    if document["model"] == "concat-bc-100":
        floors = {(64, "open"): 2.0, (1, "open"): 1.6, (64, "paper"): 2.6}
        for key, floor in floors.items():
            if key in rows and rows[key]["speedup_vs_best"] is not None:
                text = f"batch {key[0]}, gates {key[1]}: times faster than {rows[key]['best_baseline']}"
                found.append((text, rows[key]["speedup_vs_best"], ">=", floor))
        if (64, "open") in rows:
            found.append(("batch 64, gates open: GFLOP/s", rows[64, "open"]["gflops"], ">=", 380.0))
    for (batch, gates), row in rows.items():
        if gates.startswith("random:"):
            found.append((f"batch {batch}, gates {gates}: realised fraction", row["realised_fraction"], ">=", 0.90))
        if gates == "shut":
            cost = row["ours_ms"]["median"] / row["ours_open_ms"]["median"]
            found.append((f"batch {batch}, gates shut: part of the time with gates open", cost, "<=", 0.10))
    return found


def main() -> int:
    options = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    models = [argument for argument in sys.argv[1:] if not argument.startswith("--")] or ["concat-bc-100"]
    RESULTS.mkdir(exist_ok=True)
    for model in models:
        target = RESULTS / f"{machine_name()}.{Path(model).stem}.json"
        command = [sys.executable, "-m", "dsn_kernels", "bench", model, "--gates", GATES, "--json", str(target)]
        status = subprocess.run(command + options).returncode
        if status:
            return status
        print(f"{target.name}:")
        for what, measured, sign, promised in promises(json.loads(target.read_text())):
            kept = measured >= promised if sign == ">=" else measured <= promised
            print(f"  {'kept  ' if kept else 'BROKEN'} {what}: {measured:.2f} ({sign} {promised:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
