"""Times the backends that a GPU has for each operator, for the table that ``backend="auto"`` reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import dsn_models
from dsn_models.errors import UserError

from .. import choice
from ..accelerate import accelerate
from ..measure.latency import InterleavedTimer

_BATCH = 32


def example(operator: str) -> tuple[nn.Module, torch.Tensor]:
    """A module of an operator's class, with random weights, and a batch for it: the first of the zoo that has it."""

    def find(model: nn.Module) -> nn.Module | None:
        return next((module for module in model.modules() if type(module).__name__ == operator), None)

    for name in dsn_models.zoo.names():
        with torch.device("meta"):
            if find(dsn_models.create(name)) is None:
                continue
        model: Any = dsn_models.create(name).eval()
        images = torch.randn(_BATCH, model.config.in_channels, *[model.config.image_size] * 2)
        part = find(model)
        if part is None or part is model:
            return model, images
        return part, torch.randn(_BATCH, *_input_shape(model, part, images[:1])[1:])
    raise UserError(f"no network of the zoo has a {operator}")


def _input_shape(model: nn.Module, part: nn.Module, images: torch.Tensor) -> torch.Size:
    """Of what ``model`` gives to one of its parts."""
    shapes: list[torch.Size] = []
    with part.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape)), torch.inference_mode():
        model(images)
    return shapes[0]


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
