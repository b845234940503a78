"""What each gate of a network costs where it is open, in milliseconds: a training may weigh them in place of MACs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dsn_models import UserError

from .networks import gate_counts, open_gates
from .timeline import timeline


def gate_costs(model: Any, fast: Any, images: Tensor, runs: int = 9) -> dict[str, Any]:
    """Milliseconds of an image, summed over threads, by what decides on them; the means over ``images``.

    With every gate open, a gate's are those of the steps that it decides on, and the others are fixed: what every image
    needs, gates included. Filters have no steps of their own: what shutting all of a unit's filters saves is shared
    among them.

    Args:
        model: gated; the reference of ``fast``.
        fast: made by ``dsn_kernels.accelerate``, on the CPU.
        images: float32 [B, C, H, W].
        runs: calls whose median is taken.

    Returns:
        ``fixed``, ``dense`` (fixed and all gates) and ``gates``, a number for each gate by the name in ``last_gates``:
        what ``policy.costs`` of a recipe reads.

    Raises:
        UserError: the model has no gates, or :func:`.timeline.timeline` refuses.
    """
    counts = gate_counts(model)
    if not counts:
        raise UserError(f"costs are those of gates; the model is a {type(model).__name__}, which has none")
    opened = open_gates(model, len(images))
    found = timeline(fast, images, opened, runs=runs)
    steps, total = found.ms.mean(0).tolist(), found.ms.mean(0).sum().item()
    gates = {name: [0.0] * count for name, count in counts.items()}
    if hasattr(model, "unit_sizes"):
        ((name, taken),) = opened.items()
        first = 0
        for size in model.unit_sizes.values():
            shut = taken.clone()
            shut[:, first : first + size] = 0
            left = timeline(fast, images, {name: shut}, runs=runs).ms.mean(0).sum().item()
            gates[name][first : first + size] = [max(total - left, 0.0) / size] * size
            first += size
    else:
        only = next(iter(counts))
        for ms, branch, gate in zip(steps, found.branches, found.gates, strict=True):
            if gate >= 0:
                gates[branch if branch in gates else only][gate] += ms
    fixed = max(total - sum(map(sum, gates.values())), 0.0)
    return {"schema": 1, "unit": "ms", "fixed": fixed, "dense": fixed + sum(map(sum, gates.values())), "gates": gates}
