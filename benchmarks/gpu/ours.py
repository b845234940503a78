"""A network's times with our kernels, for each batch size and kind of gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsn_kernels.measure import Latency
from dsn_kernels.measure.rows import bench_row

from . import networks
from .clock import graphed, interleave
from .plan import DTYPES, TIMED, Scale
from .process import Report


def run(report: Report, scale: Scale, name: str) -> None:
    network, model = TIMED[name], networks.make_timed(name, scale)
    fast = networks.accelerate(model)
    times: Any
    for batch in scale.batches(network):
        try:
            times, chosen = _times(model, fast, batch, network.settings, scale, report.deadline)
        except BaseException as error:  # all of this batch, but the next one has its turn
            times, chosen = error, {}
        for setting in network.settings:
            with report.entry("rows", model=name, batch=batch, gates=setting) as found:
                if isinstance(times, BaseException):
                    raise times
                found |= _row(fast, batch, setting, chosen[setting], times) | dict(network.options)


def _times(
    model: Any, fast: Any, batch: int, settings: tuple[str, ...], scale: Scale, deadline: float
) -> tuple[dict[str, Latency], dict[str, dict[str, Tensor]]]:
    with torch.inference_mode():
        x = networks.images(batch, model.config).cuda()
        chosen = {setting: networks.gates(setting, model, batch) for setting in settings}
        # The graph alone, as the baselines' graphs: copies into its inputs are outside of both.
        calls = {setting: graphed(lambda g=gates: _call(fast, x, g)) for setting, gates in chosen.items()}
        return interleave(calls, scale, deadline), chosen


def _call(fast: Any, x: Tensor, gates: dict[str, Tensor]) -> object:
    return fast(x, forced_gates=gates) if gates else fast(x)


def _row(fast: Any, batch: int, setting: str, gates: dict[str, Tensor], times: dict[str, Latency]) -> dict[str, Any]:
    """As ``dsn bench`` writes it, its baselines to come."""
    facts = {"batch": batch, "gates": setting, "draws": 1, "dtype": DTYPES[0], "backend": "cuda"}
    taken = {name: gate.cpu() for name, gate in gates.items()}
    macs, macs_open = (
        fast.macs(which).double().mean().item()
        for which in (taken, {name: torch.ones_like(gate) for name, gate in taken.items()})
    )
    return bench_row(facts, times[setting], times["open"], {}, macs, macs_open, fast.dense_macs)
