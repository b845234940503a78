"""Making a trained network skip: gates around units of it, or on the filters of its convolutions.

>>> gated, report = dsn_models.gate(torchvision.models.resnet50(weights="DEFAULT"), example=images)
>>> print(report)
>>> loss = F.cross_entropy(gated(images), labels) + 4 * (gated.cost() - 0.6).clamp(min=0) ** 2
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from .computation import GateMacs
from .errors import UserError
from .gated import (
    ChosenNorm,
    FilterGate,
    FilterGateKind,
    GatedNetwork,
    GatedUnit,
    GateTrace,
    MaskLink,
    UnitGateKind,
    make_gate,
)
from .gaternet import FILTERS
from .skipnet import UNITS, RecurrentGate, check_threshold
from .tensors import dtype_name
from .units import Call, Units, chosen_filters, chosen_units, in_eval, record_calls, residual_units


@dataclass(frozen=True)
class GatedPart:
    """What one gate, or the gates of one convolution's filters, decide on.

    Attributes:
        name: path of the unit or convolution in the network as it was given.
        kind: its class.
        gates: how many.
        macs: of the part, for one image; all of them are saved where all its gates are shut.
        share: of the MACs of the whole network, in [0, 1].
    """

    name: str
    kind: str
    gates: int
    macs: int
    share: float


@dataclass(frozen=True)
class GateReport:
    """What :func:`gate` or :func:`gate_filters` did. ``str(report)`` is a table.

    Attributes:
        parts: what is gated, in the order in which it runs.
        macs: of the network without gates, for one image like the example.
        gate_macs: of the gates, which every image computes.
    """

    parts: tuple[GatedPart, ...]
    macs: int
    gate_macs: int

    @property
    def share(self) -> float:
        """Of the network's MACs, those that gates decide on, in [0, 1]."""
        return sum(part.share for part in self.parts)

    def __str__(self) -> str:
        rows = [("gated", "kind", "gates", "MACs", "share")]
        rows += [(p.name, p.kind, f"{p.gates}", f"{p.macs:,}", f"{100 * p.share:.1f} %") for p in self.parts]
        total = sum(part.macs for part in self.parts)
        rows += [("together", "", f"{sum(p.gates for p in self.parts)}", f"{total:,}", f"{100 * self.share:.1f} %")]
        rows += [("the gates themselves", "", "", f"{self.gate_macs:,}", f"{100 * self.gate_macs / self.macs:.1f} %")]
        rows += [("the network", "", "", f"{self.macs:,}", "")]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        justify = (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
        return "\n".join(
            "  ".join(put(cell, width) for put, cell, width in zip(justify, row, widths, strict=True)).rstrip()
            for row in rows
        )


def gate(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    units: Units = "auto",
    kind: UnitGateKind = "pooled",
    threshold: float = 0.5,
) -> tuple[GatedNetwork, GateReport]:
    """A copy of ``model`` in which each image skips some units: ``x`` stands in for ``unit(x)`` where a gate is shut.

    Every module may be skipped that maps one map [B, C, H, W] to one of its own shape, once in a call, and costs MACs.
    Every gate is open at first, so that the copy computes what ``model`` does until its gates have learned.

    Args:
        model: any network; it is left as it is.
        example: images, or all of the model's inputs, of which the first image is run.
        units: "auto", the innermost residual modules (torchvision's BasicBlock, timm's InvertedResidual, ...), which
            hardly change what skipping leaves; or names, or patterns in which ``*`` stands for one name between dots,
            or a part of it ("layer3.*"), or a function of name and module that says which. Of chosen modules within
            each other the outermost is gated.
        kind: "pooled", "mlp" (ConvNet-AIG's) or "recurrent" (SkipNet's); see :func:`.gated.make_gate`.
        threshold: a unit runs iff its score exceeds it.

    Returns:
        The gated network, in the mode of ``model``, and what is gated at what share of the MACs.

    Raises:
        UserError: the model has no such unit or is gated already, a name matches nothing or a module that cannot be
            skipped, or the example, kind or threshold do not fit.

    >>> import torch, dsn_models
    >>> model = dsn_models.create("resnet-20").eval()
    >>> gated, report = dsn_models.gate(model, torch.rand(1, 3, 32, 32))
    >>> gated.gate_counts
    {'units': 7}
    """
    if kind not in get_args(UnitGateKind):
        raise UserError(f"kind is {kind!r}; expected one of {', '.join(get_args(UnitGateKind))}")
    network, inputs, calls, macs = _prepared(model, example, threshold)
    chosen = residual_units(calls) if units == "auto" else chosen_units(network, calls, units)
    if not chosen:
        raise UserError(
            f"the {type(model).__name__} has no residual unit that keeps its map's shape and runs once; "
            "expected one, or units by name"
        )
    trace = GateTrace()
    first = chosen[0].inputs[0]
    control = RecurrentGate().to(first.device, first.dtype) if kind == "recurrent" else None
    for call in chosen:
        x = call.inputs[0]
        head = make_gate(kind, x.shape[1]).to(x.device, x.dtype)
        network.set_submodule(call.name, GatedUnit(call.module, head, threshold, trace, call.in_place))
    saved = {UNITS: torch.tensor([call.macs for call in chosen], dtype=torch.float64)}
    gated = GatedNetwork(network, UNITS, trace, control, GateMacs(0, saved, macs))
    return _finished(gated, inputs, [(call, 1) for call in chosen])


def gate_filters(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    units: Units = "auto",
    kind: FilterGateKind = "pooled",
    threshold: float = 0.5,
) -> tuple[GatedNetwork, GateReport]:
    """A copy of ``model`` in which each image chooses filters: ``choose_filters(bn(conv(x)), mask)``.

    The mask of a convolution is decided by a small net on the mean of its input over the pixels, as in Feature Boosting
    and Suppression (https://arxiv.org/abs/1810.05331), but is 0 or 1. Every filter is chosen at first.

    Args:
        model, example, threshold: as in :func:`gate`.
        units: "auto", every convolution that one batch norm reads and that is not depthwise, whose filters follow
            those before them; or names, patterns or a function, as in :func:`gate`, of convolutions.
        kind: "pooled" or "mlp".

    Returns:
        The gated network, in the mode of ``model``, and what is gated at what share of the MACs.

    Raises:
        UserError: the model has no such convolution or is gated already, a name matches nothing or a module that is no
            such convolution, or the example, kind or threshold do not fit.

    >>> import torch, dsn_models
    >>> model = dsn_models.create("resnet-20").eval()
    >>> gated, report = dsn_models.gate_filters(model, torch.rand(1, 3, 32, 32))
    >>> sorted(gated.gate_counts)
    ['filters']
    """
    if kind not in get_args(FilterGateKind):
        raise UserError(f"kind is {kind!r}; expected one of {', '.join(get_args(FilterGateKind))}")
    network, inputs, calls, macs = _prepared(model, example, threshold)
    pairs = chosen_filters(network, calls, units)
    trace = GateTrace()
    for conv, norm in pairs:
        x, link = conv.inputs[0], MaskLink()
        head = make_gate(kind, x.shape[1], conv.output.shape[1]).to(x.device, x.dtype)
        network.set_submodule(conv.name, FilterGate(conv.module, head, threshold, trace, link))
        network.set_submodule(norm.name, ChosenNorm(norm.module, link))
    parts = [(conv, conv.output.shape[1]) for conv, _ in pairs]
    saved = torch.cat([torch.full((count,), conv.macs / count, dtype=torch.float64) for conv, count in parts])
    gated = GatedNetwork(network, FILTERS, trace, None, GateMacs(0, {FILTERS: saved}, macs))
    return _finished(gated, inputs, parts)


def _prepared(
    model: nn.Module, example: Tensor | tuple[Tensor, ...], threshold: float
) -> tuple[nn.Module, tuple[Tensor, ...], dict[str, Call], int]:
    """A copy of the model, its inputs, what its modules did with them in ``eval()``, and the MACs of that."""
    check_threshold(threshold)
    if any(isinstance(module, GatedNetwork) for module in model.modules()):
        raise UserError(f"the {type(model).__name__} is gated already; expected one without gates")
    inputs = example if isinstance(example, tuple) else (example,)
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weight is not None and weight.is_meta:
        raise UserError(f"the {type(model).__name__} is on meta; expected one whose weights have values")
    for x in inputs:
        if not isinstance(x, Tensor) or not x.dim() or not len(x):
            given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"example is {given}; expected images [B, C, H, W], at least one")
        if weight is not None and x.device != weight.device:
            raise UserError(f"example is on {x.device}; expected {weight.device}, where the model is")
        if weight is not None and x.is_floating_point() and x.dtype != weight.dtype:
            raise UserError(
                f"example is {dtype_name(x.dtype)}; expected {dtype_name(weight.dtype)}, as the model's weights are"
            )
    network = copy.deepcopy(model)
    with in_eval(network):
        return network, inputs, *record_calls(network, inputs)


def _finished(
    gated: GatedNetwork, inputs: tuple[Tensor, ...], parts: Sequence[tuple[Call, int]]
) -> tuple[GatedNetwork, GateReport]:
    """The network with open gates that know what they cost themselves, and the report."""
    gated.open_gates()
    with in_eval(gated):
        _, whole = record_calls(gated, inputs)
    gated.trace.begin()  # the user has not called it yet
    dense, saved = int(gated.gate_macs.dense), sum(call.macs for call, _ in parts)
    gated.gate_macs = gated.gate_macs._replace(fixed=whole - saved)
    rows = [
        GatedPart(call.name, type(call.module).__name__, gates, call.macs, call.macs / dense) for call, gates in parts
    ]
    return gated, GateReport(tuple(rows), dense, whole - dense)
