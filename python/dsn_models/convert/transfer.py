"""Putting weights of other programs into our models, and taking them out, key by key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..wrappers import COUNTER
from .reading import StateDict


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
        UserError: a key is missing or unexpected, a shape does not fit or copies differ; nothing is copied then.
    """
    own = model.state_dict()
    counters = {f"{key.rpartition('.')[0]}.{COUNTER}" for key in names if key.endswith(".running_var")}
    found: dict[str, tuple[str, Tensor]] = {}
    for key, tensor in state.items():
        if key in counters:
            continue
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            raise UserError(f"unexpected key {key!r}; {what} has no such tensor{f', near {near[0]!r}' if near else ''}")
        ours = names[key]
        tensor = _fit(key, tensor, own[ours].shape)
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
