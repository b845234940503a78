"""The ``dsn`` command: what ``dsn_command`` names."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from dsn_command import COMMANDS, make_app
from dsn_models import UserError
from dsn_models.distributed import is_first
from dsn_models.lettering import printable

from ..measure.bench import WrongAnswer
from . import bench, convert, demo, evaluate, gate, info, predict, report, streams, sweep, timeline, train

app = make_app()
_FUNCTIONS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "train": train.train,
    "gate": gate.gate,
    "eval": evaluate.evaluate,
    "predict": predict.predict,
    "bench": bench.bench,
    "timeline": timeline.timeline,
    "sweep": sweep.sweep,
    "report": report.report,
    "convert": convert.convert_command,
    "info": info.info,
}
for _name, _function in _FUNCTIONS.items():
    app.command(_name, short_help=COMMANDS[_name])(_function)

WRONG, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
# Of an error that names no file: what our own files meet is told where they are written.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
# torch and the C++ library have no exception of their own for this.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")


# What stands for a value in the help, where an option says nothing more telling.
_METAVARS = {int: "N", float: "X", Path: "FILE", str: "NAME"}


def command() -> Any:
    """The whole command, every value in its help under a name in capitals."""
    made: Any = typer.main.get_command(app)
    for sub in made.commands.values():
        hints = get_type_hints(sub.callback)
        for parameter in sub.params:
            if parameter.name in hints and parameter.metavar is None:
                kinds = (hints[parameter.name], *get_args(hints[parameter.name]))
                found = next((name for kind, name in _METAVARS.items() if kind in kinds), None)
                parameter.metavar = parameter.name.upper() if parameter.param_type_name == "argument" else found
    return made


def _invoke() -> None:
    # Not typer's own main, which has other statuses for Ctrl-C and for a pipe that was closed.
    words = sys.argv[1:] or ["--help"]
    made = command()
    with contextlib.suppress(typer.Exit), made.make_context("dsn", words) as context:  # --help is an Exit
        made.invoke(context)


def _told(error: OSError) -> tuple[int, str]:
    """Exit status and message of what the system refused."""
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE, ""
    if isinstance(error.filename, str | bytes):
        return USAGE, f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.errno in _NOT_WRITTEN:
        return USAGE, f"cannot write to stdout: {error.strerror}; free space or choose another place"
    return USAGE, str(error.strerror or error)


def _run() -> tuple[int, str]:
    """Exit status and, of a failure, what is told in one line."""
    try:
        _invoke()
        return 0, ""
    except WrongAnswer as error:
        return WRONG, str(error)
    except UserError as error:
        return USAGE, str(error)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dsn_"):
            raise
        return USAGE, f"this command needs the package {error.name}; install it with pip"
    except OSError as error:
        return _told(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED, "interrupted"
    except SystemExit:  # rich leaves so when the pipe it writes to is closed
        return BROKEN_PIPE, ""
    except Exception as error:
        # A bad option: typer brings its own copy of click, whose exceptions it does not all name.
        if hasattr(error, "format_message"):
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "dsn"
            return USAGE, f"{error.format_message().rstrip('.?')}; see {path} --help"
        if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
            reason = (str(error) or "none left").splitlines()[0]
            return USAGE, f"not enough memory ({reason}); choose a smaller batch or fewer images"
        raise


def main() -> None:
    """Runs the command line. Exit status: 0, 1 for a wrong answer, 2 for a user's mistake, 130 for Ctrl-C, 141 where
    nobody reads stdout any more.

    A mistake is told in one line on stderr; a traceback means an error of ours.
    """
    streams.prepare()
    status, message = _run()
    broken = streams.settle()
    if broken is not None:
        status, message = _told(broken)
    if message and is_first():
        streams.tell(f"dsn: {'' if status == INTERRUPTED else 'error: '}{printable(' '.join(message.split()))}")
        streams.settle()
    sys.exit(status)
