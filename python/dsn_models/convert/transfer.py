"""Reading weights of other programs without running their code, and putting them into our models key by key."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError

StateDict = Mapping[str, Tensor]
_PREFIX = "module."  # of networks trained under DataParallel
_COUNTER = "num_batches_tracked"  # batch norms of old PyTorch versions have none


def read_released(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and the facts beside them of a file written by ``torch.save`` or safetensors.

    The file holds a state dict, or a dict with one under ``state_dict``; a ``module.`` before the keys is dropped. It
    is read with ``torch.load(weights_only=True)``.

    Returns:
        The state dict, and the strings and numbers beside it (``arch``, ``best_prec1``, ``epoch``, ...).

    Raises:
        UserError: there is no such file, it is cut short, holds anything but tensors and plain values, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}; expected weights written by torch.save or safetensors")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is no file of weights, or holds objects that could run code; refused. Save its state_dict alone"
        ) from error
    except Exception as error:  # of damaged bytes torch's unpickler may raise anything
        raise UserError(f"{path} is cut short or is no file of weights; copy it again") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds a {type(content).__name__} without weights; expected a state dict of tensors")
    facts = {k: v.item() if isinstance(v, Tensor) and not v.dim() else v for k, v in content.items()}
    facts = {k: v for k, v in facts.items() if isinstance(v, (str, int, float))}
    prefixed = all(key.startswith(_PREFIX) for key in state)
    return {key[len(_PREFIX) :] if prefixed else key: value for key, value in state.items()}, facts


def _fit(key: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """``tensor`` in ``shape``; a linear layer may stand for a 1x1 convolution and the other way round."""
    if tensor.shape == shape:
        return tensor
    pointwise = (1, 1)
    if tensor.shape[:2] == shape[:2] and {tensor.shape[2:], shape[2:]} == {pointwise, ()}:
        return tensor.reshape(shape)
    raise UserError(f"tensor {key!r} has shape {list(tensor.shape)}; expected {list(shape)}")


@torch.no_grad()
def transfer(model: nn.Module, state: StateDict, names: Mapping[str, str], what: str) -> None:
    """Copies ``state`` into ``model``, in place.

    Args:
        names: our key for each of theirs, batch-norm counters left out. Where several of theirs have the same of ours,
            they are copies of one tensor and one is enough.
        what: the network, for messages.

    Raises:
        UserError: a key is missing or unexpected, a shape does not fit, copies differ or weights hold NaN; nothing is
            copied then.
    """
    own = model.state_dict()
    counters = {f"{key.rpartition('.')[0]}.{_COUNTER}" for key in names if key.endswith(".running_var")}
    found: dict[str, tuple[str, Tensor]] = {}
    for key, tensor in state.items():
        if key in counters:
            continue
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise UserError(f"unexpected key {key!r}; {what} has no such tensor{f', near {near[0]!r}' if near else ''}")
        ours = names[key]
        tensor = _fit(key, tensor, own[ours].shape)
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise UserError(f"tensor {key!r} holds NaN; the network was not trained to its end")
        if ours in found and not torch.equal(found[ours][1], tensor):
            raise UserError(f"{key!r} differs from {found[ours][0]!r}; in {what} both are one tensor")
        found[ours] = key, tensor
    for key, ours in names.items():
        if ours not in found:
            raise UserError(f"key {key!r} is missing; expected all tensors of {what}")
    for ours, (_, tensor) in found.items():
        own[ours].copy_(tensor)


def export(model: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of ``model`` under their keys: the inverse of :func:`transfer`, copies included, no counters."""
    own = model.state_dict()
    return {key: own[ours] for key, ours in names.items()}
