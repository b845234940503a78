"""The Triton kernels: how exact, and their times and the CUDA kernels' in turns, graphs of both."""

from __future__ import annotations

import torch

from . import networks
from .clock import graphed, interleave
from .correctness import compare
from .plan import DTYPES, TIMED, Scale
from .process import Report


def run(report: Report, scale: Scale, name: str) -> None:
    network, model = TIMED[name], networks.make_timed(name, scale)
    triton = networks.accelerate(model, backend="triton")
    with torch.inference_mode():
        with report.entry("correct", model=name, backend="triton", dtype=DTYPES[0]) as found:
            found |= compare(model, triton, networks.DTYPE, 8)
        both = {"cuda": networks.accelerate(model), "triton": triton}
        for batch in scale.batches(network):
            x = networks.images(batch, model.config).cuda()
            for setting in network.settings:
                gates = networks.gates(setting, model, batch)
                given = {"forced_gates": gates} if gates else {}
                with report.entry("triton", model=name, batch=batch, gates=setting) as found:
                    calls = {n: graphed(lambda n=n, g=given, x=x: both[n](x, **g)) for n in both}
                    times = interleave(calls, scale, report.deadline)
                    found |= {f"{n}_ms": latency.as_dict() for n, latency in times.items()}
