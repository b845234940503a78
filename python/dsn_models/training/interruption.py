"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A Ctrl-C that was taken between two steps, where the state is whole."""


class BetweenSteps:
    """While it is open, a first Ctrl-C is kept in :attr:`asked`; a second one raises ``KeyboardInterrupt`` at once.

    Outside of the main thread, where there are no signals, or where Ctrl-C is handled in another way, it does nothing.

    Args:
        used: do so at all.
    """

    def __init__(self, used: bool) -> None:
        self.asked = False
        main = threading.current_thread() is threading.main_thread()
        self._used = used and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def __enter__(self) -> BetweenSteps:
        if self._used:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> Any:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._used:
            signal.signal(signal.SIGINT, signal.default_int_handler)
