"""Exports kept on disk: what ``torch.export`` made of a model, without its weights."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import marshal
import os
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from dsn_models.errors import UserError

from .. import _C

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, range, slice)


def kept_export(
    model: nn.Module,
    example: Sequence[Tensor],
    folder: Path,
    export: Callable[[nn.Module, Sequence[Tensor]], ExportedProgram],
    fresh: bool = False,
) -> tuple[ExportedProgram, bool]:
    """``export(model, example)``, read from a folder if it was kept there, which takes less time.

    A file is named by a hash of what decides the graph: the versions of torch and of our plans; of each module its
    class, with the files that define it, and its attributes; the values of tensors that are no weights; names, shapes
    and types of the weights and the example. What no hash of a model sees, such as a global variable that a method
    reads, is for the caller to find, who compares outputs. A file that cannot be read is made anew.
    ``torch.export.load`` reads it, which may unpickle: nobody else should be able to write to the folder.

    Args:
        model: in evaluation; its weights become those of the program.
        example: as ``export`` takes it.
        folder: is made if it is not there.
        export: what exports.
        fresh: export, whatever is there.

    Returns:
        the program, and whether it was read.

    Raises:
        UserError: ``folder`` is none, or cannot be written to; and what ``export`` raises.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cache is {str(folder)!r}, which cannot be a folder: {error.strerror}") from error
    path = folder / f"{_key(model, example)}.pt2"
    if not fresh:
        found = _read(path, model)
        if found is not None:
            return found, True
    program = export(model, example)
    _write(path, program)
    return program, False


def _read(path: Path, model: nn.Module) -> ExportedProgram | None:
    try:
        program = torch.export.load(io.BytesIO(path.read_bytes()))
        weights = model.state_dict(keep_vars=True)
        program._state_dict = {name: weights[name] for name in program.state_dict}
    except Exception:  # damaged, of another torch, or of another model: torch raises anything
        return None
    return program


def _write(path: Path, program: ExportedProgram) -> None:
    """Writes what is whole under its name at once, so that others never read a part."""
    own, example = program._state_dict, program._example_inputs
    try:
        # Names are enough; empty ones are still of the kind that the program's signature says.
        program._state_dict = {
            name: nn.Parameter(torch.empty(0), False) if isinstance(x, nn.Parameter) else torch.empty(0)
            for name, x in own.items()
        }
        program._example_inputs = None
        made = io.BytesIO()
        torch.export.save(program, made)
    finally:
        program._state_dict, program._example_inputs = own, example
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(made.getvalue())
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"cache is {str(path.parent)!r}, which cannot be written to: {error.strerror}") from error


def _key(model: nn.Module, example: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in _parts(model, example):
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(model: nn.Module, example: Sequence[Tensor]) -> Iterator[str | bytes]:
    yield from (torch.__version__, str(_C.PLAN_FORMAT))
    weights = model.state_dict(keep_vars=True)
    for name, x in (*weights.items(), *((f"input {i}", x[:0]) for i, x in enumerate(example))):
        yield f"{name} {type(x).__name__} {x.dtype} {list(x.shape)}"
    own = {id(x) for x in weights.values()}
    seen: dict[int, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        yield path
        yield from _of_class(type(module))
        for name, tensor in (*module._buffers.items(), *module._parameters.items()):
            yield name
            yield from _told(None if id(tensor) in own else tensor, seen)
        for name, value in sorted(vars(module).items()):
            if name not in ("_parameters", "_buffers", "_modules", "training"):
                yield name
                yield from _told(value, seen)


def _told(x: Any, seen: dict[int, Any]) -> Iterator[str | bytes]:
    """What a value is. Of an object of which only its address can be told, that: nothing is found under it.

    ``seen`` holds by identity what has been told, and keeps it alive, so that nothing else takes its address.
    """
    if isinstance(x, _PLAIN):
        yield repr(x)
        return
    if id(x) in seen:
        yield f"{type(x).__qualname__} told before as {list(seen).index(id(x))}"
        return
    seen[id(x)] = x
    if isinstance(x, Tensor):
        yield f"{x.dtype} {list(x.shape)}"
        yield x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
    elif isinstance(x, np.ndarray):
        yield f"{x.dtype} {x.shape}"
        yield x.tobytes()
    elif isinstance(x, nn.Module | type):
        yield from _of_class(x if isinstance(x, type) else type(x))
    elif isinstance(x, Mapping):
        yield f"{type(x).__qualname__} of {len(x)}"
        for key, value in x.items():
            yield repr(key)
            yield from _told(value, seen)
    elif isinstance(x, Set):
        yield repr(sorted(map(repr, x)))
    elif isinstance(x, Sequence):
        yield f"{type(x).__qualname__} of {len(x)}"
        for value in x:
            yield from _told(value, seen)
    elif isinstance(x, functools.partial):
        yield from _told((x.func, x.args, x.keywords), seen)
    elif isinstance(x, types.MethodType):
        yield from _told((x.__func__, x.__self__), seen)
    elif isinstance(x, types.FunctionType):
        yield marshal.dumps(x.__code__)
        yield from _told((x.__defaults__, x.__kwdefaults__, x.__closure__), seen)
    elif isinstance(x, types.CellType):
        try:
            yield from _told(x.cell_contents, seen)
        except ValueError:  # nothing is in it yet
            yield "empty"
    elif hasattr(x, "__dict__"):
        yield from _of_class(type(x))
        yield from _told(vars(x), seen)
    else:
        yield repr(x)


def _of_class(kind: type) -> Iterator[str | bytes]:
    """A class and those that it inherits from, with the files that define them; torch's own are told by its version."""
    for each in kind.__mro__:
        yield f"{each.__module__}.{each.__qualname__}"
        if each.__module__.partition(".")[0] not in ("torch", "builtins"):
            yield _source(each)


@functools.cache
def _source(kind: type) -> bytes:
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:
        file = None
    if file is not None and Path(file).is_file():
        return hashlib.sha256(Path(file).read_bytes()).digest()
    functions = [x for x in vars(kind).values() if isinstance(x, types.FunctionType)]
    return b"".join(marshal.dumps(x.__code__) for x in functions)
