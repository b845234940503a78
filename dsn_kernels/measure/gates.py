"""Gate patterns to measure with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dsn_models import UserError
from dsn_models.dual_skipping import BRANCHES
from dsn_models.gaternet import FILTERS
from dsn_models.skipnet import UNITS

from .networks import Gates

# Layers skipped, (coarse, fine), in the tables of Dual Skipping Networks; by zoo name and gate kind.
_DUAL_SKIPPED = {
    ("dsn-navon", "hard"): (0.31, 0.15),
    ("concat-bc-100", "hard"): (0.297, 0.153),
    ("concat-bc-100", "soft"): (0.305, 0.154),
    ("add-166", "hard"): (0.398, 0.104),
    ("add-166", "soft"): (0.235, 0.061),
    ("dsn-121", "hard"): (0.30, 0.13),
}
# Units kept after hybrid reinforcement learning, SkipNet; the first unit, which has no gate, is one of them.
_UNITS_KEPT = {
    "skipnet-38-rnn": 0.703,
    "skipnet-74-rnn": 0.523,
    "skipnet-110-rnn": 0.495,
    "skipnet-101-rnn-imagenet": 0.701,
}
# Filters on per image, GaterNet, figure 4; the last convolution of each unit is gated.
_FILTERS_ON = {"gaternet-resnet-164": 5453 / 7200}
_RANDOM = re.compile(r"(random|equal):(\d*\.?\d+)")


def paper_skipped(config: Any, counts: Mapping[str, int]) -> dict[str, float]:
    """Fraction of gates that the network's paper reports shut, by their name in ``last_gates``.

    Raises:
        UserError: the paper gives none for this network.
    """
    name, gate = config.name, getattr(config, "gate", "")
    if (name, gate) in _DUAL_SKIPPED:
        return dict(zip(BRANCHES, _DUAL_SKIPPED[name, gate], strict=True))
    if UNITS in counts and name in _UNITS_KEPT:
        gates = counts[UNITS]
        return {UNITS: 1 - (_UNITS_KEPT[name] * (gates + 1) - 1) / gates}
    if FILTERS in counts and name in _FILTERS_ON and config.gated == "last":
        return {FILTERS: 1 - _FILTERS_ON[name]}
    known = [f"{name} ({gate})" for name, gate in _DUAL_SKIPPED] + [*_UNITS_KEPT, *_FILTERS_ON]
    raise UserError(
        f"the paper gives no skip ratio for {name} {f'({gate} gates)' if gate else ''}; only {', '.join(known)}"
    )


@dataclass(frozen=True)
class GateSetting:
    """What the gates do: ``open``, ``shut``, ``trained``, ``paper``, ``random:P`` or ``equal:P``.

    ``trained`` is as the network decides; ``random:P`` shuts every gate with probability P, independently per sample
    and gate; ``equal:P`` does so once for all samples of a batch; ``paper`` is random with the skip ratio that the
    paper reports for each branch.
    """

    text: str

    def __post_init__(self) -> None:
        if self.text not in ("open", "shut", "trained", "paper") and not 0 <= self._probability() <= 1:
            raise UserError(
                f"gates is {self.text!r}; expected open, shut, trained, paper, random:P or equal:P with P in [0, 1], "
                "such as random:0.5"
            )

    def _probability(self) -> float:
        match = _RANDOM.fullmatch(self.text)
        return float(match[2]) if match else -1.0

    @property
    def varies(self) -> bool:
        """Whether one batch differs from the next in its gates."""
        return self.text not in ("open", "shut")

    @property
    def equal(self) -> bool:
        """Whether the samples of a batch share one pattern."""
        return not self.varies or self.text.startswith("equal")

    def draw(self, config: Any, counts: Mapping[str, int], batch: int, generator: torch.Generator) -> Gates | None:
        """The gates to force, uint8 [batch, L] by their name in ``last_gates``; None where the network decides.

        Args:
            config: of the network.
            counts: number of gates by name.
            batch: samples.
            generator: of random gates.

        Raises:
            UserError: the network has no gates to shut, or the setting is ``paper`` and the paper gives no ratio.
        """
        if not counts:
            if self.text != "open":
                raise UserError(f"gates is {self.text!r}, but {config.name} has no gates; expected open")
            return None
        if self.text == "trained":
            return None
        if self.text == "paper":
            skipped = paper_skipped(config, counts)
        else:
            fixed = {"open": 0.0, "shut": 1.0}
            skipped = dict.fromkeys(counts, fixed[self.text] if self.text in fixed else self._probability())
        rows = 1 if self.equal else batch
        return {
            name: (torch.rand(rows, count, generator=generator) >= skipped[name])
            .to(torch.uint8)
            .expand(batch, count)
            .contiguous()
            for name, count in counts.items()
        }
