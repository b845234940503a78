"""Gate patterns to measure with."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from dsn_models import UserError
from dsn_models.dual_skipping import BRANCHES, DualSkippingConfig

Gates = dict[str, Tensor]

# Layers skipped, (coarse, fine), in the paper's tables; by zoo name and gate kind.
PAPER_SKIPPED = {
    ("dsn-navon", "hard"): (0.31, 0.15),
    ("concat-bc-100", "hard"): (0.297, 0.153),
    ("concat-bc-100", "soft"): (0.305, 0.154),
    ("add-166", "hard"): (0.398, 0.104),
    ("add-166", "soft"): (0.235, 0.061),
    ("dsn-121", "hard"): (0.30, 0.13),
}


@dataclass(frozen=True)
class GateSetting:
    """What the gates do: ``open``, ``shut``, ``trained`` (as the network decides), ``paper`` or ``random:P``.

    ``random:P`` shuts every gate with probability P, independently per sample and layer; ``paper`` does so with the
    skip ratio that the paper reports for each branch.
    """

    text: str

    def __post_init__(self) -> None:
        self.skipped_at_random()  # refuses what it does not know

    @property
    def varies(self) -> bool:
        """Whether samples differ in their gates."""
        return self.text not in ("open", "shut")

    def skipped_at_random(self) -> float | None:
        """P of ``random:P``, 0 of ``open``, 1 of ``shut``, else None.

        Raises:
            UserError: the text is none of the above, or P is not in [0, 1].
        """
        fixed = {"open": 0.0, "shut": 1.0, "trained": None, "paper": None}
        if self.text in fixed:
            return fixed[self.text]
        match = re.fullmatch(r"random:(\d*\.?\d+)", self.text)
        if not match or not float(match[1]) <= 1:
            raise UserError(
                f"gates is {self.text!r}; expected open, shut, trained, paper or random:P with P in [0, 1], "
                "such as random:0.5"
            )
        return float(match[1])

    def draw(
        self, config: DualSkippingConfig, layers: dict[str, int], batch: int, generator: torch.Generator
    ) -> Gates | None:
        """The gates to force, ``{"coarse": uint8 [batch, L], "fine": ...}``; None where the network decides.

        Raises:
            UserError: ``paper``, and the paper gives no ratio for this network.
        """
        if self.text == "trained":
            return None
        probability = self.skipped_at_random()
        if probability is None:
            key = (config.name, config.gate)
            if key not in PAPER_SKIPPED:
                known = ", ".join(f"{name} ({gate})" for name, gate in PAPER_SKIPPED)
                raise UserError(f"the paper gives no skip ratio for {config.name} ({config.gate} gates); only {known}")
            skipped = dict(zip(BRANCHES, PAPER_SKIPPED[key], strict=True))
        else:
            skipped = dict.fromkeys(BRANCHES, probability)
        return {
            name: (torch.rand(batch, layers[name], generator=generator) >= skipped[name]).to(torch.uint8)
            for name in BRANCHES
        }
