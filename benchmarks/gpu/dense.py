"""A network's times without our kernels, beside ours with all gates open in the same turns."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from . import networks
from .clock import Call, graphed, interleave
from .plan import TIMED, Scale
from .process import Report


def run(report: Report, scale: Scale, name: str) -> None:
    network, model = TIMED[name], networks.make_timed(name, scale)
    against = networks.make_timed(network.against, scale) if network.against else model
    for batch in scale.batches(network):
        with torch.inference_mode():
            x = networks.images(batch, model.config).cuda()
            calls = plain(against, x)
            if network.against:
                own, half = copy.deepcopy(model).cuda().to(networks.DTYPE), x.to(networks.DTYPE)
                calls[f"eager {name}"] = lambda own=own, half=half: own(half)
            enter(report, scale, name, batch, ours(model, x), calls)


def plain(model: Any, x: Tensor) -> dict[str, Call]:
    network = networks.dense(model)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    half = x.to(networks.DTYPE)
    half_last = half.to(memory_format=torch.channels_last)
    return {
        "eager": lambda: network(half),
        "channels_last": lambda: last(half_last),
        "channels_last graph": graphed(lambda: last(half_last)),
    }


def ours(model: Any, x: Tensor) -> Call | None:
    """With all gates open, as a graph; None where that fails, which is told elsewhere."""
    try:
        fast = networks.accelerate(model)
        gates = networks.gates("open", model, len(x))
        return graphed(lambda: fast(x, forced_gates=gates) if gates else fast(x))
    except BaseException as error:
        print(f"ours beside: {error}")
        return None


def enter(report: Report, scale: Scale, name: str, batch: int, own: Call | None, calls: dict[str, Call]) -> None:
    """Times baselines, and ours beside them, and reports an entry for each."""
    times: Any
    turns = {**({"ours open": own} if own else {}), **calls}
    try:
        times = interleave(turns, scale, report.deadline)
    except BaseException as error:
        times = error
    for contestant in calls:
        with report.entry("baselines", model=name, batch=batch, name=contestant) as found:
            if isinstance(times, BaseException):
                raise times
            found["ms"] = times[contestant].as_dict()
            if own:
                found["ours_open_ms"] = times["ours open"].as_dict()
