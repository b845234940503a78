"""What thresholds shall keep."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dsn_models import UserError

_NUMBER = r"\d*\.?\d+"
_BUDGET = re.compile(rf"latency={_NUMBER}\s*(ms|%)?|macs={_NUMBER}\s*%?|(error=\+?|accuracy=-){_NUMBER}\s*pt")
TOLERANCE = 0.03  # a latency or MACs so little over their budget keep it
REFINEMENTS = 12
CLOSE = 0.003  # so little below a budget no threshold is refined further
LINE_OFF = 0.01  # a line of latencies so far off is as good as can be timed


@dataclass(frozen=True)
class Budget:
    """``latency=2ms`` (per batch), ``latency=0.8`` or ``80%`` (of the network's as it is), ``macs=0.6`` or ``60%`` (of
    the dense network's) or ``accuracy=-0.5pt`` (below all gates open; ``error=+0.5pt`` is the same).

    Under a latency and MACs the error is made least, under an accuracy the MACs.

    Attributes:
        text: one of these.
        own_ms: of a batch as the network is, where a share of it is meant.
    """

    text: str
    own_ms: float = math.nan

    def __post_init__(self) -> None:
        if not _BUDGET.fullmatch(self.text):
            raise UserError(
                f"budget is {self.text!r}; expected latency=2ms, latency=0.8 (of its own), macs=0.6 or 60% (of the "
                "dense network's) or accuracy=-0.5pt (of all gates open)"
            )
        if self.relative and self._number > 1:
            share = f"latency={self._number:g}ms, or a share in [0, 1]"
            raise UserError(f"budget is {self.text!r}; expected {share} of its own")

    @property
    def kind(self) -> str:
        """ "latency", "macs" or "error"."""
        return "error" if self.word == "accuracy" else self.word

    @property
    def word(self) -> str:
        """What is limited, in the words in which it is given."""
        return self.text.split("=")[0]

    @property
    def limit(self) -> float:
        """Milliseconds, a fraction of the dense MACs, or a fraction of all answers."""
        if self.relative:
            return self._number * self.own_ms
        return self._number / 100 if self.kind == "error" else self._number

    @property
    def relative(self) -> bool:
        """Whether it is a share of the network's own latency."""
        return self.kind == "latency" and not self.text.endswith("ms")

    @property
    def _number(self) -> float:
        value = float(re.findall(_NUMBER, self.text)[0])
        return value / 100 if self.text.endswith("%") else value

    def amount(self, cost: float) -> str:
        """What this budget limits, in the words in which it is given."""
        if self.relative:
            return f"{cost / self.own_ms:.3g}"
        points = {"error": f"{100 * cost:+.2f}pt", "accuracy": f"{-100 * cost:+.2f}pt"}
        return {"latency": f"{cost:.3g}ms", "macs": f"{cost:.3g}", **points}[self.word]
