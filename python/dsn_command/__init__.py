"""The ``dsn`` command up to where it needs torch: its options, its commands' names, its help.

``dsn --help`` is answered from here; everything else is in ``dsn_kernels.cli``, whose import takes seconds.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer

SETTINGS: dict[str, Any] = {
    "name": "dsn",
    "help": "Networks that decide per image which layers they need, and kernels that compute only those.",
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
COMMANDS = {
    "demo": "The shipped network on handwritten digits, and a report.",
    "train": "Train a reference model by a recipe.",
    "gate": "Teach a trained network of yours to skip units.",
    "eval": "Accuracy and layers skipped on a test set.",
    "predict": "Classes of image files, and what they took.",
    "bench": "Latency and MACs beside dense runtimes.",
    "timeline": "Which layer ran for which image, and what it cost.",
    "sweep": "Gate thresholds; picks those that keep a budget.",
    "report": "One HTML page on what the gates do to a data set.",
    "convert": "Released weights to a checkpoint.",
    "info": "What was built, and what runs here.",
}


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dsn {version('dsn-kernels')}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """What ``dsn`` takes before a command."""


def make_app() -> typer.Typer:
    """The application, without its commands."""
    app = typer.Typer(**SETTINGS)
    app.callback(help=SETTINGS["help"])(options)
    return app


def help_text() -> str:
    """What ``dsn --help`` prints."""
    app = make_app()
    for name, summary in COMMANDS.items():
        app.command(name, short_help=summary)(lambda: None)
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="dsn", **SETTINGS["context_settings"])
    return str(command.get_help(context))


def main() -> None:
    """Runs the command line; see ``dsn_kernels.cli.main`` for the exit status."""
    words = sys.argv[1:]
    if words in ([], ["-h"], ["--help"]) and sys.stdout is not None:
        try:
            print(help_text(), flush=True)
            return
        except OSError:
            pass  # the full command knows what to tell of a stream that is closed or full
    from dsn_kernels.cli import main as run

    run()
