"""The ``dsn`` command: demo, train, eval, bench, timeline, sweep, report, convert, info."""

from __future__ import annotations

import sys

import typer

from dsn_models import UserError
from dsn_models.distributed import is_first

from ..measure.bench import WrongAnswer
from . import bench, convert, demo, evaluate, info, report, sweep, timeline, train

app = typer.Typer(
    name="dsn",
    help="Networks that decide per image which layers they need, and kernels that compute only those.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("timeline")(timeline.timeline)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("convert")(convert.convert_command)
app.command("info")(info.info)

USAGE, INTERRUPTED = 2, 130


def _fail(message: str, status: int) -> None:
    if is_first():
        print(f"dsn: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def main() -> None:
    """Runs the command line. Exit status: 0, 1 for a wrong answer, 2 for a user's mistake, 130 for Ctrl-C.

    A mistake is told in one line on stderr; a traceback means an error of ours.
    """
    try:
        status = app(standalone_mode=False) or 0
        if status == INTERRUPTED:  # typer turns Ctrl-C into this status, click into Abort
            raise KeyboardInterrupt
        sys.exit(status)
    except UserError as error:
        _fail(str(error), USAGE)
    except WrongAnswer as error:
        _fail(str(error), 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", USAGE)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dsn_"):
            raise
        _fail(f"this command needs the package {error.name}; install it with pip", USAGE)
    except (KeyboardInterrupt, typer.Abort):
        print("dsn: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        # A bad option: typer brings its own copy of click, whose exceptions it does not all name.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message().rstrip('.')}; see dsn --help", USAGE)
