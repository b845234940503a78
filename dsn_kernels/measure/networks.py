"""What the measurements need to know of a network, the same for every family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dsn_models.macs import count_macs

Outputs = tuple[Tensor, ...]
Gates = dict[str, Tensor]


def as_outputs(result: Tensor | Outputs) -> Outputs:
    """A network's result as a tuple: one tensor of logits per task."""
    return result if isinstance(result, tuple) else (result,)


def run(network: Any, images: Tensor, gates: Mapping[str, Tensor] | None = None) -> Outputs:
    """One forward pass, with ``gates`` forced if there are any."""
    return as_outputs(network(images, forced_gates=gates) if gates else network(images))


def gate_counts(model: Any) -> dict[str, int]:
    """Number of gates by their name in ``last_gates``, of a reference or accelerated network; empty without gates."""
    layers = getattr(model, "layers", {})
    return dict(getattr(model, "gate_counts", layers if isinstance(layers, dict) else {}))


def open_gates(model: Any, batch: int) -> Gates:
    """Every gate open, to be forced: uint8 [batch, L] by their name in ``last_gates``."""
    return {name: torch.ones(batch, count, dtype=torch.uint8) for name, count in gate_counts(model).items()}


def dense_network(model: Any) -> nn.Module:
    """The network without gates that a user would otherwise run: every layer, unit or filter."""
    return model.dense_equivalent() if hasattr(model, "dense_equivalent") else model


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of one image."""
    return config.in_channels, config.image_size, config.image_size


def count_dense(model: Any) -> int:
    """MACs per image of a plain network, by torch's counter.

    A gated network is counted as its dense network, without the gates.
    """
    return count_macs(dense_network(model), model.config)


def executed_macs(fast: Any, images: Tensor, gates: Mapping[str, Tensor] | None = None) -> Tensor:
    """Runs ``fast`` and returns the MACs that its kernels counted, int64 [B].

    Of a network with only some parts replaced, each sample is run alone under torch's counter, which asks our operators
    and knows the others.
    """
    with torch.inference_mode():
        if hasattr(fast, "last_macs"):
            run(fast, images, gates)
            return fast.last_macs.clone()
        macs = []
        for i in range(len(images)):
            forced = None if gates is None else {name: taken[i : i + 1] for name, taken in gates.items()}
            with FlopCounterMode(display=False) as counter:
                run(fast, images[i : i + 1], forced)
            macs.append(counter.get_total_flops() // 2)
        return torch.tensor(macs, dtype=torch.int64)
