"""One file of tests, in a process of its own: what a fault leaves behind reaches no other file."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

from .plan import ROOT, Scale
from .process import Report

OUTCOMES = ("passed", "failed", "skipped", "error")


def run(report: Report, scale: Scale, path: str) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "--maxfail=50", "-p", "no:cacheprovider", path]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout=40", "--timeout-method=thread"]
    with report.entry("tests", file=path.rsplit("/")[-1]) as found:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "DSN_GPU_TESTS_ONLY": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        found |= count(process.stdout or ())
        found["exit_status"] = process.wait()


def count(lines):
    """Outcomes of pytest's verbose lines, as far as they go, and its last one."""
    found = dict.fromkeys(OUTCOMES, 0)
    last = ""
    for line in lines:
        print(line, end="", flush=True)
        if match := re.search(r"::.* (PASSED|FAILED|SKIPPED|ERROR)\b", line):
            found[match[1].lower()] += 1
        last = line.strip() or last
    return {**found, "said": last.strip("= ")}
