"""Checkpoints: weights in safetensors, and in its metadata all that is needed to build the model again."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import nn

from .constructors import ConstructedConfig, check_permitted, reconstruct
from .errors import UserError
from .files import foreign, is_safetensors, is_torch
from .tensors import FLOATS, check_finite, dtype_name
from .world import attach
from .zoo import build, family_of, fields_of

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
        model: made by ``create`` or ``load``, or by ``dsn gate``.
        path: the file; its folder is made.
        metadata: JSON-serialisable facts to keep with it, such as what it was trained on; see :func:`read_metadata`.
            ``data`` is the description of the data, which ``open_dataset`` takes as ``like``.

    Raises:
        UserError: :func:`load` would refuse the file (see :func:`check`), or it cannot be written.

    >>> import dsn_models
    >>> path = dsn_models.save(dsn_models.create("lenet"), "lenet.safetensors", note="random weights")
    >>> dsn_models.read_metadata(path)
    {'note': 'random weights'}
    """
    path = Path(path)
    family, fields, tensors = _checked(model)
    try:
        header = {
            "format": FORMAT,
            "family": family,
            "config": json.dumps(fields),
            "metadata": json.dumps(metadata),
        }
    except (TypeError, ValueError) as error:
        raise UserError(
            f"metadata cannot be kept as JSON ({error}); expected text, numbers, lists and dicts"
        ) from error
    write_atomically(path, _serialise(tensors, header))
    return path


def _serialise(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file, the same bytes each time: the library writes metadata in random order, here it is sorted."""
    data = safetensors_torch.save(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end]) | {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[end:]


def check(model: nn.Module) -> None:
    """Refuses what :func:`save` would refuse, without writing.

    Raises:
        UserError: the model is none of ours, its configuration cannot be kept or is of other tensors than it has, its
            tensors are of several float types, or one holds NaN or infinity.
    """
    _checked(model)


def _checked(model: nn.Module) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    family, config = family_of(model), cast(Any, model).config
    fields = dataclasses.asdict(config)
    try:
        json.dumps(fields)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"configuration of {config.name} cannot be kept as JSON ({error}); expected plain values"
        ) from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if family == ConstructedConfig.family:  # its constructor is anybody's, and may not know the meta device
        expected = model.state_dict()
    else:
        with torch.device("meta"):
            expected = build(family, fields).state_dict()
    _check_tensors(tensors, expected, config.name, config.name)
    seen: set[int] = set()
    for name, tensor in tensors.items():  # safetensors keep no two names of one memory
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return family, fields, tensors


def _check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], where: str, name: Any
) -> None:
    """Refuses what is no network of a configuration; ``where`` it is and the configuration's ``name`` are told."""
    for key, tensor in tensors.items():
        check_finite(key, tensor, where)
    for key in [*expected, *tensors]:
        if key not in tensors or key not in expected:
            what = "missing" if key not in tensors else "unexpected"
            raise UserError(f"{where}: tensor {key} is {what}; expected the tensors of {name}")
        if tensors[key].shape != expected[key].shape:
            given, wanted = list(tensors[key].shape), list(expected[key].shape)
            raise UserError(f"{where}: tensor {key} has shape {given}; expected {wanted}")
    types = {t.dtype for key, t in tensors.items() if expected[key].is_floating_point()}
    if len(types) > 1 or not types <= {*FLOATS}:
        found, known = (", ".join(sorted(map(dtype_name, some))) for some in (types, FLOATS))
        raise UserError(f"{where}: weights are {found}; expected all of one type, of {known}")


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; expected a safetensors file written by dsn_models.save")
    what = foreign(path)
    if what is not None:
        raise UserError(f"{path} is no safetensors file but {what}")
    if is_torch(path):
        raise UserError(f"{path} is no safetensors file but PyTorch's; convert its weights first: dsn convert {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut short or is no safetensors file ({error}); copy or train it again") from error
    if header.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file of another program (format {header.get('format')!r}); expected {FORMAT!r}, "
            f"as written by dsn_models.save; convert released weights first: dsn convert {path}"
        )
    return header, tensors


def read_family(path: str | Path) -> str | None:
    """The family of the network in a checkpoint of ours; None of any other file, or of none."""
    if not Path(path).is_file() or not is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError:
        return None
    return header.get("family") if header.get("format") == FORMAT else None


def _parsed(header: Mapping[str, str], key: str, path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(header[key])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} has no readable {_PARTS[key]} ({error!r}); train or convert it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} has no readable {_PARTS[key]} ({found!r}); train or convert it again")
    return found


_PARTS = {"config": "configuration", "metadata": "metadata"}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What :func:`save` was given as ``metadata``.

    Raises:
        UserError: as :func:`load`.

    >>> import dsn_models
    >>> dsn_models.read_metadata(dsn_models.save(dsn_models.create("lenet"), "lenet.safetensors"))
    {}
    """
    return _parsed(_read(path)[0], "metadata", path)


def load(path: str | Path, arch: str | Sequence[str] | None = None) -> nn.Module:
    """The model of a checkpoint, in ``eval()`` mode on the CPU.

    Where the checkpoint says so, ``model.class_names`` has the names of the classes and ``model.preprocess(image)``
    makes of a picture what the network takes; else they are None. See :mod:`.world`.

    A checkpoint of ``dsn gate`` names the function that constructs its network, ``"package.module:function"``, and the
    arguments of the call. Nothing is imported, and nothing called, unless ``arch`` names that function too.

    Args:
        path: the file.
        arch: constructors that may be imported, one or several. Of no matter to a network of the zoo.

    Raises:
        UserError: the file is missing, cut short, foreign, of another shape than its configuration, or its weights
            hold NaN or infinity; or its constructor is not in ``arch``, cannot be imported or fails.

    >>> import dsn_models
    >>> path = dsn_models.save(dsn_models.create("lenet"), "lenet.safetensors")
    >>> dsn_models.load(path).config.name
    'lenet'
    """
    header, tensors = _read(path)
    fields = _parsed(header, "config", path)
    if "family" not in header:
        raise UserError(f"{path} does not say of which family its network is; train or convert it again")
    if header["family"] == ConstructedConfig.family:
        config = fields_of(ConstructedConfig, fields)
        check_permitted(config.arch, arch, str(path))
        model: nn.Module = reconstruct(config)
    else:
        model = build(header["family"], fields)
    _check_tensors(tensors, model.state_dict(), str(path), fields.get("name"))
    floating = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    model.to(floating).load_state_dict(tensors)
    attach(model, _parsed(header, "metadata", path) if "metadata" in header else {})
    return model.eval()


def with_classes(model: nn.Module, classes: int | tuple[int, int], seed: int = 0) -> tuple[nn.Module, list[str]]:
    """A copy of ``model`` with another class count, and the names of its fresh tensors: those whose shape that sets.

    Args:
        model: made by ``create`` or ``load``.
        classes: as its configuration has them: a number, or (coarse, fine). A task whose number is the same keeps its
            classifier.
        seed: of the fresh tensors.

    Raises:
        UserError: the model is none of ours, or has one task where ``classes`` are of two, or the other way round.

    >>> import dsn_models
    >>> network, fresh = dsn_models.with_classes(dsn_models.create("lenet"), 3)
    >>> network.config.classes, len(fresh)
    (3, 2)
    """
    family, config = family_of(model), cast(Any, model).config
    if isinstance(config.classes, tuple) != isinstance(classes, tuple):
        raise UserError(f"{config.name} has {config.classes} classes; {classes} are of another number of tasks")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = build(family, {**dataclasses.asdict(config), "classes": classes})
    own, given = fresh.state_dict(), model.state_dict()
    changed = [name for name, tensor in own.items() if tensor.shape != given[name].shape]
    fresh.load_state_dict({**given, **{name: own[name] for name in changed}})
    return fresh.train(model.training), changed
