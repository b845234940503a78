"""Multiply-accumulates of a network, by torch's own counter."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(model: nn.Module, config: Any) -> int:
    """Multiply-accumulates of a module for one image of the configuration's size; counted on the meta device."""
    shape = (1, config.in_channels, config.image_size, config.image_size)
    dtype = next((parameter.dtype for parameter in model.parameters()), None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval().to("meta")(torch.empty(shape, dtype=dtype, device="meta"))
    return counter.get_total_flops() // 2
