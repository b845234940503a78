"""Measures anew and prints ratios against this machine's committed results: ``python benchmarks/compare.py [RUN ...]``.

Without names: every run of ``benchmarks/cpu.py`` that this machine has results of. Nothing under ``benchmarks/results``
is changed. A difference that noise explains is ``=``; of the dense baselines OpenVINO alone is timed again, since what
it changed by is the machine. Exit status 1 if something became slower. Options such as ``--seconds=10`` go to
``dsn bench``. An idle machine, please.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from cpu import KERNELS, RUNS, check_runs, machine_name, measure, result_file
from regression import Change, changes, read
from rich.console import Console
from rich.table import Table

from dsn_models import UserError

YARDSTICK = ("--against", "openvino")


def compare(run: str, options: list[str]) -> list[Change]:
    """Measures a run and compares it with this machine's results.

    Raises:
        UserError: there are none, or they are of something else.
    """
    before = read(result_file(run))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "after.json"
        status = measure(run, target, [] if run == KERNELS else [*YARDSTICK, *options])
        if status:
            sys.exit(status)
        return changes(before, read(target))


def table(run: str, found: list[Change]) -> Table:
    result = Table(title=f"{run}: this machine before and now, median ms")
    for column in ("", "before", "now", "ratio", "noise", "verdict"):
        result.add_column(column, justify="right" if column else "left")
    for change in found:
        times = (f"{value:.3g}" for value in (change.before, change.after))
        result.add_row(change.what, *times, f"{change.ratio:.2f}", f"{100 * change.noise:.0f} %", change.verdict)
    return result


def main() -> int:
    options = [argument for argument in sys.argv[1:] if argument.startswith("--")]
    names = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    check_runs(names)
    slower = 0
    try:
        if not names:
            names = [name for name in (*RUNS, KERNELS) if result_file(name).exists()]
            if not names:
                raise UserError(f"no results of {machine_name()} under benchmarks/results; make bench writes them")
        for name in names:
            found = compare(name, options)
            slower += sum(change.verdict == "slower" for change in found)
            Console(highlight=False).print(table(name, found))
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
