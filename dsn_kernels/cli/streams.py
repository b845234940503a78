"""The command's streams and its Ctrl-C, whatever started it: closed or full outputs, any encoding, ignored signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys


def prepare() -> None:
    """Makes stdout and stderr usable in any case, and Ctrl-C work where the parent ignored it.

    A shell without job control starts its background jobs with SIGINT ignored, and so would Python leave it. SIGHUP
    stays as inherited: ``nohup`` means it.
    """
    # Closed outputs are None. Stdout then fails when it is written, so that a lost result is told; of a closed stderr
    # nobody can be told.
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def settle() -> OSError | None:
    """Flushes stdout and stderr; returns why stdout cannot be written, if it cannot.

    What a broken stream still holds is dropped, or the interpreter's own last flush would fail, with noise.
    """
    found = None
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except OSError as error:
            found = error if stream is sys.stdout else None
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())
    return found


def tell(message: str) -> None:
    """One line on stderr, if that can be written."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)
