"""One small network for a kind of kernel, on its own: ``python -m gpu.kinds KIND`` runs it under compute-sanitizer."""

from __future__ import annotations

import sys

import torch

from . import networks
from .correctness import compare
from .plan import KINDS, Scale
from .process import Report, Step, work


def run(report: Report, scale: Scale, kind: str) -> None:
    case = KINDS[kind]
    model = networks.make(case.model, case.options)
    with torch.inference_mode():
        fast = networks.accelerate(model)
        setting = "random:0.5" if fast.layers else ""
        for batch in scale.kind_batches:
            with report.entry("kinds", kind=kind, model=case.model, kernels=list(case.kernels)) as found:
                found |= compare(model, fast, networks.DTYPE, batch, setting)


if __name__ == "__main__":
    kind, *flags = sys.argv[1:]
    work(Step(f"kind {kind}", "kinds", 1e9, (kind,)), Scale(rehearsal="--rehearse" in flags), Report(None))
