"""What gated networks compute, in multiply-accumulates (MACs), and a SkipNet in units too, as its paper does."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .dual_skipping import BRANCHES, DualSkippingNetwork
from .errors import UserError
from .gaternet import FILTERS, GaterNet
from .macs import count_macs
from .skipnet import UNITS, SkipNet


class UnitMacs(NamedTuple):
    """MACs of one image by part, of convolutions and linear layers.

    Attributes:
        fixed: stem, first unit, projected shortcuts and head, which every image needs.
        gates: int64 [L], each gate with its share of the recurrent one; they decide for every image.
        residuals: int64 [L], the gated units without their shortcuts; only kept ones are needed.
    """

    fixed: int
    gates: Tensor
    residuals: Tensor

    @property
    def dense(self) -> int:
        """MACs of the network without gates."""
        return self.fixed + int(self.residuals.sum())


class Computation(NamedTuple):
    """What images compute, as fractions or counts of the shape of the gates without their last dimension.

    Attributes:
        units: fraction of all units that run, the ungated first one counted; the paper's measure.
        macs: MACs of an image, gates included.
        saved: 1 - macs / MACs of the network without gates.
    """

    units: Tensor
    macs: Tensor
    saved: Tensor


def _run(part: nn.Module, *inputs: object) -> tuple[Tensor, int]:
    """The output of a part and its MACs."""
    with FlopCounterMode(display=False) as counter:
        out = part(*inputs)
    return out, counter.get_total_flops() // 2


@torch.no_grad()
def unit_macs(model: SkipNet) -> UnitMacs:
    """Counts ``model``'s parts for one image of its configuration's size, on the meta device."""
    config = model.config
    with torch.device("meta"):
        network = SkipNet(config).eval()
        image = torch.empty(1, config.in_channels, config.image_size, config.image_size)
    x, fixed = _run(network.stem, image)
    x, first = _run(network.units[0], x)
    fixed += first
    gates, residuals = [], []
    for gate, unit in zip(network.gates, list(network.units)[1:], strict=False):  # the last gate decides nothing
        embedding, macs = _run(gate, x.mean((2, 3)) if config.gate == "rnn" else x)
        if config.gate == "rnn":
            macs += _run(network.control, embedding, None)[1]
        gates.append(macs)
        shortcut = _run(unit.get_submodule("shortcut"), x)[1]
        x, whole = _run(unit, x)
        fixed += shortcut
        residuals.append(whole - shortcut)
    return UnitMacs(fixed + _run(network.head, x)[1], torch.tensor(gates), torch.tensor(residuals))


def computation(model: SkipNet, kept: Tensor) -> Computation:
    """Units and MACs of images whose gates keep ``kept``.

    Args:
        model: its shapes count, its weights do not.
        kept: [..., L], 1 for a unit that runs and 0 for a bypassed one, or the fraction of images that ran it.
    """
    counts, kept = unit_macs(model), kept.double().cpu()
    macs = counts.fixed + counts.gates.sum() + (kept * counts.residuals).sum(-1)
    return Computation((1 + kept.sum(-1)) / (1 + kept.shape[-1]), macs, 1 - macs / counts.dense)


class GateMacs(NamedTuple):
    """MACs of one image by what decides on them: convolutions and linear layers, in the model's order of operations.

    A skipped layer, unit or filter saves its own MACs; what it saves in those that would have read it, which the
    kernels save too, is not counted here. Papers count so, but for the gates, which are counted.

    Attributes:
        fixed: what every image needs, gates included.
        gates: float64 [L] by the name in ``last_gates``, what each gate saves when it is shut.
        dense: of the network without gates.
    """

    fixed: float
    gates: dict[str, Tensor]
    dense: float

    def executed(self, gates: Mapping[str, Tensor]) -> Tensor:
        """MACs of images whose gates are ``gates``, [..., L] each, 0 and 1 or between; [...], differentiable."""
        taken = {name: g if g.is_floating_point() else g.double() for name, g in gates.items()}
        parts = [(g * self.gates[name].to(g)).sum(-1) for name, g in taken.items()]
        return self.fixed + torch.stack(parts).sum(0)


def gate_macs(model: nn.Module) -> GateMacs:
    """The MACs that each gate of a gated network decides on, for one image of its configuration's size.

    A network that has ``gate_macs`` tells them itself, such as one that was made to skip (:mod:`.gating`).

    Raises:
        UserError: the model has no gates.
    """
    if isinstance(told := getattr(model, "gate_macs", None), GateMacs):
        return told
    if isinstance(model, SkipNet):
        units = unit_macs(model)
        gates = {UNITS: units.residuals.double()}
        return GateMacs(units.fixed + int(units.gates.sum()), gates, units.dense)
    if isinstance(model, DualSkippingNetwork):
        counts = macs_by_module(model)
        gates = {
            name: torch.tensor(
                [
                    sum(counts[f"{name}.blocks.{i}.layers.{j}.{conv}"] for conv, _ in cast(Any, layer).convolutions)
                    for i, block in enumerate(getattr(model, name).blocks)
                    for j, layer in enumerate(block.layers)
                ],
                dtype=torch.float64,
            )
            for name in BRANCHES
        }
    elif isinstance(model, GaterNet):
        counts, filters = macs_by_module(model), torch.zeros(model.num_gates, dtype=torch.float64)
        for point in model.gate_points:
            for conv in point.convolutions:
                filters[conv.gates] = counts[f"backbone.{conv.conv}"] / (conv.gates.stop - conv.gates.start)
        gates = {FILTERS: filters}
    else:
        raise UserError(f"the model is a {type(model).__name__}; expected a gated network")
    fixed = sum(counts.values()) - sum(macs.sum().item() for macs in gates.values())
    return GateMacs(fixed, gates, count_macs(cast(Any, model).dense_equivalent(), model.config))


def used_parameters(model: DualSkippingNetwork, ran: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Parameters of each branch that an image uses on average: all but those of the layers that it skips.

    Dual Skipping Networks, table 2: "averagely used parameters", of 1.06 M in each branch of Concat-40 0.9 M and 0.7 M.
    The stem, which both branches share, and the gates, which decide for every image, are counted in each.

    Args:
        model: of two branches.
        ran: by branch, the fraction of images that ran each layer, [L], as ``training.evaluate`` tells it.
    """
    stem = _count(model.stem)
    used = {}
    for name in BRANCHES:
        branch = getattr(model, name)
        layers = [layer for block in branch.blocks for layer in block.layers]
        skipped = sum((1 - share) * _count(layer) for layer, share in zip(layers, ran[name], strict=True))
        used[name] = stem + _count(branch) - skipped
    return used


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def read_gate_costs(path: str | Path, counts: Mapping[str, int]) -> GateMacs:
    """What each gate saves as it was measured, milliseconds in the place of MACs: a file of ``dsn timeline --costs``.

    Args:
        path: JSON with ``fixed`` and, by the gates' name, a number for each gate under ``gates``.
        counts: of the model's gates, by name.

    Raises:
        UserError: it cannot be read, is no such file, or is of a network with other gates.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        fixed = float(content["fixed"])
        gates = {str(name): [float(value) for value in values] for name, values in content["gates"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no costs of gates ({error!r}); make it with dsn timeline CKPT --costs"
        ) from error
    given = {name: len(values) for name, values in gates.items()}
    if given != dict(counts):
        raise UserError(f"{path} has the costs of {given} gates; the model has {dict(counts)}")
    if not all(math.isfinite(value) and value >= 0 for value in (fixed, *(v for row in gates.values() for v in row))):
        raise UserError(f"{path} holds a cost that is negative or not finite; measure it again")
    costs = {name: torch.tensor(values, dtype=torch.float64) for name, values in gates.items()}
    dense = fixed + sum(values.sum().item() for values in costs.values())
    if dense <= 0:
        raise UserError(f"{path} says that the network costs nothing; measure it again")
    return GateMacs(fixed, costs, dense)


@torch.no_grad()
def macs_by_module(model: nn.Module) -> dict[str, int]:
    """MACs of each convolution and linear layer by its path, for one image, on the meta device."""
    network: Any = copy.deepcopy(model).eval().to("meta", torch.float32)
    counts: dict[str, int] = {}

    def count(path: str, module: Any):
        def hook(_: nn.Module, args: object, out: Tensor) -> None:
            counts[path] = module.weight.numel() * (out.shape[2:].numel() if out.dim() == 4 else 1)

        return hook

    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count(path, module))
    config = network.config
    network(torch.empty(1, config.in_channels, config.image_size, config.image_size, device="meta"))
    return counts
