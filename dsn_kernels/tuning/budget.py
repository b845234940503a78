"""What thresholds shall keep."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dsn_models import UserError

_NUMBER = r"\d*\.?\d+"
_BUDGET = re.compile(rf"latency={_NUMBER}\s*ms|macs={_NUMBER}|error=\+?{_NUMBER}\s*pt")
TOLERANCE = 0.03  # a latency or MACs so little over their budget keep it
REFINEMENTS = 12
CLOSE = 0.003  # so little below a budget no threshold is refined further
LINE_OFF = 0.01  # a line of latencies so far off is as good as can be timed


@dataclass(frozen=True)
class Budget:
    """``latency=2ms`` (per batch), ``macs=0.6`` (of the dense network's) or ``error=+0.5pt`` (above all gates open).

    Under the first two the error is made least, under the third the MACs.
    """

    text: str

    def __post_init__(self) -> None:
        if not _BUDGET.fullmatch(self.text):
            raise UserError(
                f"budget is {self.text!r}; expected latency=2ms, macs=0.6 (of the dense network's) or error=+0.5pt"
            )

    @property
    def kind(self) -> str:
        """ "latency", "macs" or "error"."""
        return self.text.split("=")[0]

    @property
    def limit(self) -> float:
        """Milliseconds, a fraction of the dense MACs, or a fraction of all answers."""
        value = float(re.findall(_NUMBER, self.text)[0])
        return value / 100 if self.kind == "error" else value

    def amount(self, cost: float) -> str:
        """What this budget limits, in the words in which it is given."""
        return {"latency": f"{cost:.3g}ms", "macs": f"{cost:.3g}", "error": f"{100 * cost:+.2f}pt"}[self.kind]
