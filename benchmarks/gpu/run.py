"""Runs every step on a GPU, or in a rehearsal without one, and writes what they find: see benchmarks/gpu.sh."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import gpu_bars

from . import standins
from .document import Document
from .phases import PHASES, Phase, faults_of, find_gpu
from .plan import TOGETHER, Scale
from .process import Running, Step, describe

LEAST = 5.0  # s, for which no step is started


class Runner:
    """Runs steps and keeps the document and the logs.

    Steps are forked from a process that has torch and the kernels imported and no device opened: an import costs
    seconds, and there are many steps. Where a forked process finds no device, each begins a new interpreter.
    """

    def __init__(self, out: Path, scale: Scale, seconds: float) -> None:
        self.document = Document(out / "gpu.json")
        self.out, self.scale = out, scale
        self.seconds = seconds
        # The host runner's build is no part of what is rehearsed, and may wait for another that is under way.
        self.deadline = time.monotonic() + seconds + (900 if scale.rehearsal else 0)
        self.scratch = Path(tempfile.mkdtemp(prefix="dsn-gpu-"))
        self.running: list[Running] = []
        self.fresh = multiprocessing.get_context("spawn")
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["gpu.preload"])
        self.logs = (out / "steps.log").open("w")
        if scale.rehearsal:
            tools = standins.make_tools(self.scratch / "bin")
            os.environ["PATH"] = os.pathsep.join([str(tools), os.environ.get("PATH", "")])

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, steps: Sequence[Step], until: float, together: int = 1) -> list[dict[str, Any]]:
        """Runs steps, ``together`` at a time, and returns what they ended with; what has not ended at ``until`` is
        killed, what has not begun is entered as such."""
        waiting, outcomes = deque(steps), []
        while waiting or self.running:
            while waiting and len(self.running) < together:
                outcome = self.start(waiting.popleft(), until)
                outcomes += [outcome] if outcome else []
            wait([handle for r in self.running for handle in (r.pipe, r.process.sentinel)], timeout=0.2)
            for running in list(self.running):
                outcome = self.look_at(running)
                outcomes += [outcome] if outcome else []
        return outcomes

    def start(self, step: Step, until: float) -> dict[str, Any] | None:
        seconds = min(step.seconds, until - time.monotonic())
        if seconds < LEAST:
            return self.enter(step, {"step": step.name, "seconds": 0, "outcome": "not run", "said": "no time left"})
        log = self.scratch / f"{step.name}.log"
        try:
            context = self.fresh if step.fresh else self.context
            self.running.append(Running(context, step, self.scale, seconds, log))
        except Exception as error:
            said = f"no process: {describe(error)}"
            return self.enter(step, {"step": step.name, "seconds": 0, "outcome": "failed", "said": said})
        return None

    def look_at(self, running: Running) -> dict[str, Any] | None:
        """Takes what a step has reported; its outcome if it has ended or is ended."""
        ended = running.process.exitcode is not None  # looked at first: all it said is then in the pipe
        for kind, content in running.read():
            try:
                self.document.set(**content) if kind == "set" else self.document.add(kind, content)
            except Exception as error:  # what one step reports must not end the others
                running.failed = f"reported what cannot be kept: {describe(error)}"
        late = "" if ended else running.late or ("no time left at all" if self.left() < 0 else "")
        if not ended and not late:
            return None
        if late:
            late += running.kill()
        self.running.remove(running)
        running.pipe.close()
        self.keep_log(running)
        return self.enter(running.step, running.outcome(late), running.messages)

    def enter(self, step: Step, outcome: dict[str, Any], messages: int = 0) -> dict[str, Any]:
        if outcome["outcome"] != "done" and step.section and not messages:
            self.document.add(step.section, {**step.facts, "failed": f"{outcome['outcome']}: {outcome['said']}"})
        self.document.add("steps", outcome)
        said = f": {outcome['said']}" if "said" in outcome else ""
        print(f"{step.name}: {outcome['outcome']} in {outcome['seconds']} s{said}", flush=True)
        return outcome

    def keep_log(self, running: Running) -> None:
        self.logs.write(f"==== {running.step.name}\n")
        with contextlib.suppress(OSError):
            self.logs.write(running.log.read_text(errors="replace"))
        self.logs.flush()

    def end(self) -> None:
        for running in self.running:
            running.kill()
        shutil.rmtree(self.scratch, ignore_errors=True)


def run_phases(runner: Runner, phases: Sequence[Phase]) -> None:
    """Each phase leaves those behind it the least time that they are given. A rehearsal's take what they need of that:
    what they are after is that every step has its turn."""
    for number, phase in enumerate(phases):
        until = runner.deadline - sum(p.least for p in phases[number + 1 :])
        if not runner.scale.rehearsal:
            until = min(until, time.monotonic() + phase.most)
        steps = phase.steps(runner.scale)
        outcomes = runner.run(steps, until, TOGETHER if phase.together else 1)
        if phase.name == "environment" and any(o["outcome"] != "done" for o in outcomes):
            print("no device in a forked process: each step begins a new interpreter", flush=True)
            runner.context = runner.fresh
            runner.run(steps, until)
        elif phase.name == "build" and runner.scale.rehearsal:
            runner.deadline = time.monotonic() + runner.seconds
        print(f"{phase.name}: {runner.left():.0f} s left", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU: the host runner and stand-ins")
    parser.add_argument("--inject", default="", metavar="FAULT,...", help="of a rehearsal: hang, wrong, fault, missing")
    given = parser.parse_args(arguments)
    if given.inject and not given.rehearse:
        parser.error("--inject is for a rehearsal; add --rehearse")
    try:
        scale = Scale(given.rehearse, faults_of(given.inject))
    except ValueError as error:
        parser.error(str(error))
    seconds = os.environ.get("GPU_SECONDS", "525")
    if not seconds.isdecimal():
        print(f"GPU_SECONDS is {seconds!r}; expected whole seconds, such as 525", file=sys.stderr)
        return 2
    if not given.rehearse and (missing := find_gpu()):
        print(missing, file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    runner = Runner(given.out, scale, float(seconds))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        runner.document.set(schema=2, rehearsal=scale.rehearsal, injected=dict(scale.faults))
        run_phases(runner, PHASES)
        runner.document.set(seconds=round(time.monotonic() - begin, 1))
    finally:
        runner.end()
    print(gpu_bars.table(runner.document.content))
    print(f"{given.out / 'gpu.json'} after {time.monotonic() - begin:.0f} s")
    outcomes = [step["outcome"] for step in runner.document.content["steps"]]
    return 0 if all(outcome == "done" for outcome in outcomes) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # not behind a process that the device does not let go
