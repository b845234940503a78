"""Checkpoints: weights in safetensors, and in its metadata all that is needed to build the model again."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import nn

from .errors import UserError
from .zoo import build, family_of

FORMAT = "dsn-kernels/1"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes beside ``path``, flushes to the disk, renames: nobody sees half a file.

    Raises:
        UserError: the file cannot be written, such as on a full disk; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free space or choose another place") from error
    finally:  # of Ctrl-C too
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def save(model: nn.Module, path: str | Path, **metadata: Any) -> Path:
    """Saves weights, buffers and configuration to a safetensors file, atomically.

    Args:
        model: made by ``create`` or ``load``.
        path: the file; its folder is made.
        metadata: JSON-serialisable facts to keep with it, such as what it was trained on; see :func:`read_metadata`.

    Raises:
        UserError: the model is none of ours, or the file cannot be written.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "family": family_of(model),
        "config": json.dumps(dataclasses.asdict(cast(Any, model).config)),
        "metadata": json.dumps(metadata),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, safetensors_torch.save(tensors, header))
    return path


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; expected a safetensors file written by dsn_models.save")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut short or is no safetensors file ({error}); copy or train it again") from error
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file of another program (format {header.get('format')!r}); "
            f"expected {FORMAT!r}, as written by dsn_models.save"
        )
    return header, tensors


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What :func:`save` was given as ``metadata``.

    Raises:
        UserError: as :func:`load`.
    """
    return json.loads(_read(path)[0]["metadata"])


def load(path: str | Path) -> nn.Module:
    """The model of a checkpoint, in ``eval()`` mode on the CPU.

    Raises:
        UserError: the file is missing, cut short, foreign, of another shape than its configuration, or its weights
            hold NaN.
    """
    header, tensors = _read(path)
    try:
        family, fields = header["family"], json.loads(header["config"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} has no readable configuration ({error!r}); train or convert it again") from error
    model = build(family, fields)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise UserError(f"weights hold NaN: tensor {name} of {path}; train it again with a lower learning rate")
    expected = model.state_dict()
    for name in [*expected, *tensors]:
        if name not in tensors or name not in expected:
            what = "missing" if name not in tensors else "unexpected"
            raise UserError(f"{path}: tensor {name} is {what}; expected the tensors of {fields.get('name')}")
        if tensors[name].shape != expected[name].shape:
            given, wanted = list(tensors[name].shape), list(expected[name].shape)
            raise UserError(f"{path}: tensor {name} has shape {given}; expected {wanted}")
    floating = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    model.to(floating).load_state_dict(tensors)
    return model.eval()
