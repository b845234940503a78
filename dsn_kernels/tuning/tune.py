"""Times the backends that a GPU has for each operator, for the table that ``backend="auto"`` reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import dsn_models

from .. import choice
from ..accelerate import accelerate
from ..measure.latency import InterleavedTimer

# Operator -> what is timed, and the shape of its input.
_BATCH = 32
_MODELS = {
    "DualSkippingNetwork": "concat-bc-100",
    "LayerSkippableNetwork": "lsn-concat-bc-100",
    "SkipNet": "skipnet-38-rnn",
    "GaterNet": "gaternet-resnet-20",
    "GraduallyUpdatedNetwork": "gunn-15",
    "DenseNet": "densenet-bc-100",
    "ResNet": "resnet-110",
    "ShakeShake": "shake-shake-64d",
    "InceptionV4": "inception-v4",
    "LeNet": "lenet",
}


# Of a part: a network that has it, and its input: channels and side.
_PARTS = {
    "BasicUnit": ("resnet-110", 16, 32),
    "BottleneckUnit": ("resnet-50", 64, 56),
    "ResidualBottleneck": ("resnet-164", 16, 32),
    "ShakeUnit": ("shake-shake-64d", 16, 32),
    "Branches": ("inception-v4", 64, 147),
    "GradualLayer": ("gunn-15", 240, 32),
    "DenseBlock": ("densenet-bc-100", 24, 32),
    "SkipDenseBlock": ("concat-bc-100", 24, 32),
    "Transition": ("concat-bc-100", 216, 32),
    "Head": ("concat-bc-100", 342, 8),
}


def example(operator: str) -> tuple[nn.Module, torch.Tensor]:
    """A module of an operator's class, with random weights, and a batch for it."""
    if operator in _MODELS:
        model: Any = dsn_models.create(_MODELS[operator]).eval()
        side = model.config.image_size
        return model, torch.randn(_BATCH, model.config.in_channels, side, side)
    name, channels, side = _PARTS[operator]
    parts = dsn_models.create(name).eval().modules()
    return next(m for m in parts if type(m).__name__ == operator), torch.randn(_BATCH, channels, side, side)


def _timed(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def call() -> None:
        module(x)
        torch.cuda.synchronize(x.device)

    return call


def tune(
    device: torch.device,
    dtype: torch.dtype,
    seconds: float,
    on_operator: Callable[[str, dict[str, float]], None] = lambda name, ms: None,
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each usable backend for each operator, batch 32, timed in turns.

    Args:
        device: the GPU.
        dtype: of weights and activations.
        seconds: of timing for each backend and operator.
        on_operator: told each operator's times.
    """
    found = {}
    torch.manual_seed(0)
    for operator in choice.OPERATORS:
        model, x = example(operator)
        calls = {}
        for backend, reason in choice.candidates(device, dtype).items():
            if not reason:
                fast = accelerate(model, dtype=dtype, backend=backend, device=device)
                calls[backend] = _timed(fast, x.to(device))
        timer = InterleavedTimer(calls)
        if calls:
            timer.run(seconds)
        found[operator] = {name: latency.median for name, latency in timer.latencies().items()}
        on_operator(operator, found[operator])
    return found
