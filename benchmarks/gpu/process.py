"""A step: one job in a process of its own, with a time limit, whatever becomes of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .plan import Scale

IMPORTS = 120.0  # s that a process may take until its job's imports are done; a cold torch took 21
GRACE = 5.0  # s that a killed process has to disappear: one that waits for the device may stay a while


@dataclass(frozen=True)
class Step:
    """What is started.

    Attributes:
        name: of the step; starts with its phase.
        job: a module of this package; its ``run(report, scale, *arguments)`` does the work.
        seconds: of work at most, once the imports are done.
        section, facts: of the document; what is entered there if the step reports nothing.
        fresh: in a new interpreter, not one that has torch imported before the kernels are built.
    """

    name: str
    job: str
    seconds: float
    arguments: tuple[Any, ...] = ()
    section: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False


def describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


class Report:
    """What a job tells; a message each, so that nothing is lost with the process."""

    def __init__(self, pipe: Connection | None, seconds: float = 1e9) -> None:
        self._pipe, self._seconds = pipe, seconds
        self.deadline = 0.0  # when measuring is to end, so that the rest is done before the process is ended

    def ready(self) -> None:
        """The imports are done: time counts from here."""
        self.deadline = time.monotonic() + 0.8 * self._seconds
        self._send("ready", None)

    def set(self, **values: Any) -> None:
        self._send("set", values)

    def add(self, section: str, **entry: Any) -> None:
        self._send(section, entry)

    @contextlib.contextmanager
    def entry(self, section: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """An entry that is added whatever happens: what the block puts into it, or why it failed."""
        found: dict[str, Any] = {}
        try:
            yield found
        except BaseException as error:  # a row is at stake, and the next one may come out right
            traceback.print_exc()
            self.add(section, **facts | {"failed": describe(error)})
        else:
            self.add(section, **facts | found)

    def _send(self, kind: str, content: Any) -> None:
        message = json.dumps([kind, content])
        if self._pipe is None:
            print(message, flush=True)
        else:
            self._pipe.send_bytes(message.encode())


def perform(step: Step, scale: Scale, pipe: Connection, log: str) -> None:
    """The process of a step. It leads a group, so that what it starts ends with it."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1), os.dup2(output, 2)
    report = Report(pipe, step.seconds)
    try:
        work(step, scale, report)
    except BaseException as error:
        traceback.print_exc()
        report.add("failed", text=describe(error))
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)  # what a faulted device does at exit is no longer of interest


def work(step: Step, scale: Scale, report: Report) -> None:
    if scale.rehearsal:
        from . import standins

        standins.install(scale, step.name)
    job = importlib.import_module(f"gpu.{step.job}")
    report.ready()
    job.run(report, scale, *step.arguments)


class Running:
    """A step under way."""

    def __init__(self, context: Any, step: Step, scale: Scale, seconds: float, log: Path) -> None:
        self.step, self.log = replace(step, seconds=seconds), log
        self.pipe, end = context.Pipe(duplex=False)
        self.process = context.Process(target=perform, args=(self.step, scale, end, str(log)), daemon=True)
        self.started = time.monotonic()
        self.ready_at: float | None = None
        self.messages = 0
        self.failed = ""
        self.process.start()
        end.close()

    def read(self) -> Iterator[tuple[str, Any]]:
        """Messages that have come, but for those about the process itself."""
        with contextlib.suppress(EOFError, OSError, ValueError):  # a process that died may leave half a message
            while self.pipe.poll():
                kind, content = json.loads(self.pipe.recv_bytes())
                if kind == "ready":
                    self.ready_at = time.monotonic()
                elif kind == "failed":
                    self.failed = content["text"]
                else:
                    self.messages += 1
                    yield kind, content

    @property
    def late(self) -> str:
        """Why it is to be ended; empty while it has time."""
        now = time.monotonic()
        if self.ready_at is None:
            return f"no import within {IMPORTS:.0f} s" if now > self.started + IMPORTS else ""
        return f"out of time: {self.step.seconds:.0f} s" if now > self.ready_at + self.step.seconds else ""

    def kill(self) -> str:
        """Ends the process and what it started; says so if it does not go."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()  # before it leads a group
        self.process.join(GRACE)
        return "" if self.process.exitcode is not None else ", and does not end"

    def outcome(self, late: str = "") -> dict[str, Any]:
        """The entry of ``steps``: the outcome ``done``, ``failed``, ``died``, ``killed`` and what is to be said."""
        entry: dict[str, Any] = {"step": self.step.name, "seconds": round(time.monotonic() - self.started, 1)}
        code = self.process.exitcode
        if late:
            return {**entry, "outcome": "killed", "said": late}
        if self.failed:
            return {**entry, "outcome": "failed", "said": self.failed}
        if code:
            said = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return {**entry, "outcome": "died", "said": said}
        return {**entry, "outcome": "done"}
