"""The dense network as compilers make it, for each batch size. Building one may take longer than all else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import networks
from .clock import Call, graphed
from .dense import enter, ours
from .plan import TIMED, Scale
from .process import Report, describe


def run(report: Report, scale: Scale, mode: str, name: str) -> None:
    network, model = TIMED[name], networks.make_timed(name, scale)
    against = networks.make_timed(network.against, scale) if network.against else model
    contestant = "tensorrt" if mode == "tensorrt" else f"compile {mode}"
    for batch in scale.batches(network):
        with torch.inference_mode():
            x = networks.images(batch, model.config).cuda()
            try:
                call = tensorrt(against, x) if mode == "tensorrt" else compiled(against, x, mode)
            except BaseException as error:
                report.add("baselines", model=name, batch=batch, name=contestant, failed=describe(error))
                continue
            enter(report, scale, name, batch, ours(model, x), {contestant: call})
        torch._dynamo.reset()


def compiled(model: Any, x: Tensor, mode: str) -> Call:
    network = networks.dense(model).to(memory_format=torch.channels_last)
    call = torch.compile(network, dynamic=False, mode=mode)
    inputs = x.to(networks.DTYPE).to(memory_format=torch.channels_last)
    for _ in range(3):
        call(inputs)
    # The other modes make a graph of their own.
    return graphed(lambda: call(inputs)) if mode == "default" else lambda: call(inputs)


def tensorrt(model: Any, x: Tensor) -> Call:
    import torch_tensorrt  # type: ignore[import-not-found]

    network, inputs = networks.dense(model), x.to(networks.DTYPE)
    call = torch_tensorrt.compile(network, inputs=[inputs], enabled_precisions={networks.DTYPE})
    return graphed(lambda: call(inputs))
