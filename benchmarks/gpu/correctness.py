"""How far the kernels are from the exact result, and torch of the same precision from it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from . import networks

ALLOWED = 2.0  # times the error of torch in the kernels' own type


def relative_error(got: Tensor, exact: Tensor) -> float:
    """``||got - exact|| / ||exact||`` over everything there is, float64."""
    return ((got - exact).norm() / exact.norm()).item()


def compare(model: Any, fast: Any, dtype: torch.dtype, batch: int, setting: str = "") -> dict[str, Any]:
    """Error of ``fast`` and of torch against the float64 reference with the same gates: those that ``fast`` took, or of
    ``setting`` for both. A wrong result is an entry as any other, ``right`` false."""
    x = networks.images(batch, model.config)
    forced = networks.gates(setting, model, batch) if setting else {}
    got = networks.logits(fast(x.cuda(), forced_gates=forced) if forced else fast(x.cuda()))
    taken = {name: gate.clone() for name, gate in fast.last_gates.items()}
    given = {"forced_gates": taken} if taken else {}
    own = networks.logits(copy.deepcopy(model).cuda().to(dtype)(x.cuda().to(dtype), **given))
    given = {"forced_gates": {name: gate.cpu() for name, gate in taken.items()}} if taken else {}
    exact = networks.logits(copy.deepcopy(model).cpu().double()(x.double(), **given))
    error, allowed = relative_error(got, exact), ALLOWED * relative_error(own, exact)
    counted = fast.last_macs.cpu()
    formula = fast.macs({name: gate.cpu() for name, gate in taken.items()}).expand_as(counted)
    entry = {
        "batch": batch,
        "error": error if math.isfinite(error) else None,
        "allowed": allowed if math.isfinite(allowed) else None,
        "right": error <= allowed,
        "macs_right": torch.equal(counted, formula),
    }
    if not entry["right"]:
        entry["said"] = f"wrong by {error:.2e} of its norm, torch by {allowed / ALLOWED:.2e}"
    return entry
