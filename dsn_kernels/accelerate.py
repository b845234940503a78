"""From a trained reference model to one that computes only what its gates open."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

import dsn_models
from dsn_models.densenet import Head, Transition
from dsn_models.dual_skipping import DualSkippingNetwork, SkipDenseBlock
from dsn_models.errors import UserError

from . import nn as twins

_TWINS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    DualSkippingNetwork: twins.DualSkippingNetwork,
    SkipDenseBlock: twins.DenseBlock,
    Transition: twins.Transition,
    Head: twins.Head,
}
_BACKENDS = ("auto", "cpu", "reference")


def accelerate(model: nn.Module, dtype: torch.dtype = torch.float32, backend: str = "auto") -> nn.Module:
    """Returns a model with the same call and outputs as ``model.eval()`` that runs only the layers its gates open.

    A `dsn_models.DualSkippingNetwork` becomes one operator from image to logits. In any other model each gated dense
    block, transition and head of `dsn_models` is replaced by its twin and the rest stays as it is; ``swapped`` on the
    result names what was replaced. The model given is left untouched; its weights are copied.

    Args:
        model: trained; weights on the CPU.
        dtype: of weights and activations; float32.
        backend: ``"cpu"``, ``"reference"`` (the model itself, in eval mode) or ``"auto"``.

    Raises:
        UserError: nothing in the model can be accelerated, a weight holds NaN or infinity or is not on the CPU, or
            dtype or backend are not served.
    """
    if backend not in _BACKENDS:
        raise UserError(f"backend is {backend!r}; expected one of {', '.join(_BACKENDS)}")
    if dtype != torch.float32:
        raise UserError(f"dtype is {dtype}; the CPU kernels serve torch.float32")
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}; expected a torch.nn.Module, such as dsn_models.load(...)")
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "cpu":
            raise UserError(f"model is on {tensor.device} ({name}); move it with model.cpu()")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"weights hold NaN or infinity: tensor {name}; load another checkpoint")
    if backend == "reference":
        return copy.deepcopy(model).eval()
    twin = _twin(model)
    if twin is not None:
        return twin
    fast = copy.deepcopy(model).eval()
    swapped: list[str] = []
    for name, module in list(fast.named_modules()):
        parent, _, child = name.rpartition(".")
        if any(name.startswith(done + ".") for done in swapped):
            continue
        twin = _twin(module)
        if twin is not None:
            setattr(fast.get_submodule(parent), child, twin)
            swapped.append(name)
    if not swapped:
        supported = ", ".join(sorted(cls.__name__ for cls in _TWINS))
        raise UserError(
            f"model is a {type(model).__name__} without a part that can be accelerated; supported: {supported} "
            f"of dsn_models (zoo: {', '.join(dsn_models.zoo.names())})"
        )
    fast.swapped = swapped  # type: ignore[assignment]
    return fast


def _twin(module: nn.Module) -> nn.Module | None:
    cls = _TWINS.get(type(module))
    return None if cls is None else cls(module)
