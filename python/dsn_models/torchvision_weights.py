"""Loads torchvision's DenseNet-121 weights into ``densenet-121`` and both branches of ``dsn-121``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from .densenet import DenseNet
from .dual_skipping import DualSkippingNetwork
from .errors import UserError
from .tensors import check_finite

_OLD_STYLE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)\.")
_STEM = {"conv0": "conv", "norm0": "norm"}
_LAYER = re.compile(r"features\.denseblock(\d+)\.denselayer(\d+)\.(.+)")
_TRANSITION = re.compile(r"features\.transition(\d+)\.(.+)")


def _our_name(key: str) -> tuple[str, bool]:
    """Our parameter name for torchvision's key, and whether it belongs to each branch (else to the stem)."""
    if match := _LAYER.fullmatch(key):
        block, layer, rest = match.groups()
        return f"blocks.{int(block) - 1}.layers.{int(layer) - 1}.{rest}", True
    if match := _TRANSITION.fullmatch(key):
        return f"transitions.{int(match[1]) - 1}.{match[2]}", True
    if key.startswith("features.norm5."):
        return key.replace("features.norm5.", "head.norm."), True
    if key.startswith("classifier."):
        return f"head.{key}", True
    for theirs, ours in _STEM.items():
        if key.startswith(f"features.{theirs}."):
            return key.replace(f"features.{theirs}.", f"stem.{ours}."), False
    raise UserError(f"unexpected key {key!r}; expected torchvision's DenseNet-121 state dict")


def load_torchvision_densenet121(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Copies torchvision's ``densenet121`` state dict into ``model``, in place.

    Old-style keys (``norm.1.weight``) are read too. The fine branch's last transition has more inputs than
    torchvision's: the unguided part is copied, the guide's part stays as initialised. A classifier of another class
    count stays as initialised.

    Args:
        model: made by ``create("densenet-121")`` or ``create("dsn-121")``, with as many input channels.
        state_dict: torchvision's, of any class count.

    Returns:
        One line for each tensor that was left, wholly or in part, as initialised; gates are not listed.

    Raises:
        UserError: a key is missing or unexpected, a shape does not fit, or a tensor holds NaN or infinity; nothing is
            copied then.

    >>> import torch, dsn_models
    >>> network = dsn_models.create("densenet-121", classes=3)
    >>> load_torchvision_densenet121(network, {"features.conv0.weigth": torch.zeros(1)})
    Traceback (most recent call last):
    dsn_models.errors.UserError: ...
    """
    if isinstance(model, DualSkippingNetwork):
        prefixes = ["coarse.", "fine."]
    elif isinstance(model, DenseNet):
        prefixes = [""]
    else:
        raise UserError(f"model is a {type(model).__name__}; expected 'densenet-121' or 'dsn-121'")
    own = model.state_dict()
    copies: dict[str, Tensor] = {}
    notes: list[str] = []
    for theirs, tensor in state_dict.items():
        key = _OLD_STYLE.sub(r"\1\2.", theirs)
        name, per_branch = _our_name(key)
        check_finite(theirs, tensor)
        for ours in [prefix + name for prefix in prefixes] if per_branch else [name]:
            if ours not in own:
                raise UserError(f"unexpected key {theirs!r}; the model has no {ours}")
            copies[ours] = tensor
    optional = ("num_batches_tracked",)
    for ours, target in own.items():
        if ".gates." in ours or ours.endswith(optional):
            continue
        if ours not in copies:
            raise UserError(f"key for {ours} is missing; expected torchvision's complete DenseNet-121 state dict")
        given, wanted = list(copies[ours].shape), list(target.shape)
        wider = ".transitions." in ours and len(given) == len(wanted) and "fine." in ours
        axis = 1 if len(wanted) == 4 else 0
        if given == wanted:
            continue
        if ".head.classifier." in f".{ours}" and given[1:] == wanted[1:]:
            notes.append(f"{ours}: left at its initial values, {given[0]} classes given, the model has {wanted[0]}")
            del copies[ours]
        elif wider and given[axis] < wanted[axis] and _without(given, axis) == _without(wanted, axis):
            notes.append(f"{ours}: inputs {given[axis]} to {wanted[axis] - 1} (guide) left at their initial values")
        else:
            raise UserError(f"tensor for {ours} has shape {given}; expected {wanted}")
    for ours, tensor in copies.items():
        target = own[ours]
        if target.shape == tensor.shape:
            target.copy_(tensor)
        else:
            target.narrow(1 if target.dim() == 4 else 0, 0, tensor.shape[1 if target.dim() == 4 else 0]).copy_(tensor)
    return notes


def _without(shape: list[int], axis: int) -> list[int]:
    return shape[:axis] + shape[axis + 1 :]
