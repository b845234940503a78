"""Where a call makes the host wait, as plain launches and as the model's own graph."""

from __future__ import annotations

import torch

import dsn_kernels

from . import networks
from .plan import MODEL, Scale
from .process import Report
from .waits import observe

BATCH = 8


def run(report: Report, scale: Scale) -> None:
    model = networks.make_timed(MODEL, scale)
    found: dict[str, list[str] | str] = {}
    for name, options in (("launches", {}), ("graph", {"cuda_graph": (BATCH,)})):
        fast = dsn_kernels.accelerate(model, dtype=networks.DTYPE, backend="cuda", **options)
        x = networks.images(BATCH, model.config).cuda()
        with torch.inference_mode():
            try:
                found[name] = observe(lambda fast=fast, x=x: fast(x))
            except ValueError as error:
                found[name] = f"not observed: {error}"
        report.set(host_synchronisations=dict(found))
