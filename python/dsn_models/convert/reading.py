"""Reading weights of other programs without running their code: what a file is, and where in it the weights are."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..checkpoints import FORMAT
from ..errors import UserError
from ..files import foreign, is_safetensors, is_torch
from ..tensors import FLOATS, check_finite, dtype_name
from ..wrappers import COUNTER, bare

StateDict = Mapping[str, Tensor]
# Under what names programs keep weights, and averages of them.
_HOLDERS = {"state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"}
_AVERAGED = {"ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "averaged"}
_NO_WEIGHTS = ("optim", "sched", "lr_sched", "scaler", "amp", "rng", "args", "config", "loops", "callbacks", "hyper")
_PROFILED = {"total_ops", "total_params", "n_averaged"}  # of profilers, and of an average of weights


def read_released(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and the facts beside them of a file written by ``torch.save`` or safetensors.

    The file holds a state dict, or dicts with one under a usual name: ``state_dict``, ``model``, ``net``, ..., before
    ``ema``, their average. What wraps a network is dropped from the keys (``module.``, ``_orig_mod.``, ``model.``,
    ``backbone.``), and what profilers leave. It is read with ``torch.load(weights_only=True)``.

    Returns:
        The state dict, floats as float32, and the strings and numbers beside it (``arch``, ``best_prec1``, ...).

    Raises:
        UserError: there is no such file, it is none of weights or cut short, holds anything but tensors and plain
            values, no weights, or several; or a tensor holds NaN or infinity, or is of a type that is no weight.
    """
    path = Path(path)
    content = _content(path)
    found = _chosen(content, path)
    facts: dict[str, Any] = {}
    if found is not content:
        facts = {k: v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for k, v in content.items()}
        facts = {k: v for k, v in facts.items() if isinstance(k, str) and _is_fact(v)}
    state: dict[str, Tensor] = {}
    for key, value in found.items():
        if not isinstance(value, Tensor) or key.rpartition(".")[2] in _PROFILED:
            continue
        name, tensor = bare(key), _weight(key, value)
        if name in state and not torch.equal(state[name], tensor):
            raise UserError(
                f"{path}: {key!r} is one of two different tensors of the name {name!r}; save one network alone"
            )
        state[name] = tensor
    return state, facts


def _is_fact(value: Any) -> bool:
    return isinstance(value, str | int) or isinstance(value, float) and math.isfinite(value)


def _content(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no file {path}; expected weights written by torch.save or safetensors")
    what = foreign(path)
    if what is not None:
        raise UserError(f"{path} is no file of weights but {what}")
    try:
        if not is_safetensors(path):
            return torch.load(path, "cpu", weights_only=True)
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") == FORMAT:
                raise UserError(f"{path} is a checkpoint of ours already; use it as it is")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except UserError:
        raise
    except Exception as error:  # damaged bytes make a reader stumble anywhere
        if isinstance(error, pickle.UnpicklingError) and is_torch(path):
            what = "is no file of weights, or holds objects that could run code; refused"
            raise UserError(f"{path} {what}. Save its state_dict alone") from error
        raise UserError(f"{path} is cut short or is no file of weights; copy it again") from error


def _states(content: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every dict with weights in it, and under which names it lies."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    if any(isinstance(value, Tensor) and value.dim() and value.dtype.is_floating_point for value in content.values()):
        yield names, content
    for key, value in content.items():
        if not key.lower().startswith(_NO_WEIGHTS):
            yield from _states(value, (*names, key))


def _rank(names: tuple[str, ...]) -> int:
    """Trained weights before the file itself, which has others beside it then, before averages, before the rest."""
    if any(name in _AVERAGED for name in names):
        return 2
    if not names:
        return 1
    return 0 if all(name in _HOLDERS for name in names) else 3


def _chosen(content: Any, path: Path) -> Mapping[str, Any]:
    states = sorted(_states(content), key=lambda found: _rank(found[0]))
    if not states:
        raise UserError(f"{path} holds a {type(content).__name__} without weights; expected a state dict of tensors")
    alike = [names for names, _ in states if _rank(names) == _rank(states[0][0])]
    if len(alike) > 1:
        places = " and ".join(repr(".".join(names)) for names in alike[:3])
        raise UserError(f"{path} holds several networks, under {places}; save the one that is meant alone")
    return states[0][1]


def _weight(key: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if key.rpartition(".")[2] == COUNTER:
        return tensor
    if tensor.is_quantized or tensor.dtype not in FLOATS:
        raise UserError(
            f"tensor {key!r} is {dtype_name(tensor.dtype)}, whose scale or meaning the file does not tell; "
            f"expected one of {', '.join(map(dtype_name, FLOATS))}"
        )
    check_finite(key, tensor)
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    if not bool(tensor.float().isfinite().all()):
        raise UserError(f"tensor {key!r} holds numbers that float32 cannot; scale the network down")
    return tensor.float()
