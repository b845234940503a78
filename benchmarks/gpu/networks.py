"""Networks, images and gates as every job takes them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import dsn_kernels
import dsn_models
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.networks import as_outputs, dense_network, gate_counts

from .plan import DTYPES, TIMED, Scale

DTYPE = getattr(torch, DTYPES[0])


def make(name: str, options: Mapping[str, Any]) -> Any:
    """Random weights whose batch norms have seen data: the time of a layer does not depend on its weights."""
    torch.manual_seed(0)
    model = dsn_models.create(name, **options)
    model.train()
    with torch.no_grad():
        model(images(4, model.config))
    return model.eval().requires_grad_(False)


def make_timed(name: str, scale: Scale) -> Any:
    """One of `plan.TIMED`, or of the networks that these are held against."""
    return make(name, scale.options(name, TIMED[name].options if name in TIMED else {}))


def images(batch: int, config: Any) -> Tensor:
    """On the CPU."""
    shape = batch, config.in_channels, config.image_size, config.image_size
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def gates(setting: str, model: Any, batch: int) -> dict[str, Tensor]:
    """Gates to force, on the device; none of a network that has none."""
    generator = torch.Generator().manual_seed(0)
    drawn = GateSetting(setting).draw(model.config, gate_counts(model), batch, generator) or {}
    return {name: taken.cuda() for name, taken in drawn.items()}


def accelerate(model: Any, dtype: torch.dtype = DTYPE, backend: str = "cuda") -> Any:
    return dsn_kernels.accelerate(model, dtype=dtype, backend=backend)


def dense(model: Any, dtype: torch.dtype = DTYPE) -> nn.Module:
    """The network that a user would run otherwise, on the device."""
    return copy.deepcopy(dense_network(model)).cuda().to(dtype)


def logits(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return torch.cat(as_outputs(out), 1).cpu().double()
