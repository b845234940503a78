"""What is asked of the GPU kernels for networks that skip units or filters, and for gradually updated ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """A network of the zoo, the fraction of its gates that are shut, and what is asked.

    Attributes:
        name, options: of `dsn_models.create`.
        skipped: of the gates; 0 of a network without any.
        at_least: times the best dense run.
        batches: for which that is asked.
        against: the network whose dense run counts, its own without gates if not given.
    """

    name: str
    skipped: float
    at_least: float
    batches: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    against: str = ""

    @property
    def settings(self) -> tuple[str, ...]:
        """Of the gates: all open, each sample its own, all samples the same."""
        return ("open", f"random:{self.skipped}", f"equal:{self.skipped}") if self.skipped else ("open",)


FAMILIES = (
    Family("skipnet-110-rnn", 0.5, 1.7, (1, 8, 64)),
    Family("gunn-15", 0.0, 1.0, (1, 8, 64), against="sunn-15"),
    Family("gaternet-resnet-164", 0.5, 1.5, (64,), {"gated": "all"}),
    Family("skipnet-101-rnn-imagenet", 0.3, 1.3, (8, 64)),
)
REALISED = 0.85  # of the multiply-accumulates saved
TIMES_EAGER = 3.0  # of a network without gates
WITHIN = 1.1  # patterns that all differ, times equal ones
