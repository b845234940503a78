"""From a trained reference model to one that computes only what its gates open."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dsn_models
from dsn_models.errors import UserError
from dsn_models.world import hand_on

from . import _C, capture
from .runtime import RUNNERS, Accelerated, CapturedModel, Part, Target
from .verify import called_modules, check_accelerated, check_captured, check_model

_Makers = Mapping[type[nn.Module], Callable[..., nn.Module]]
_BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
_CPU_DTYPES = (torch.float32, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def accelerate(
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    device: torch.device | str | None = None,
    cuda_graph: bool | Sequence[int] = False,
    example: Any = None,
    verify: bool = True,
    strict: bool = False,
    cache: str | Path | None = None,
) -> nn.Module:
    """Returns a model with the same call and outputs as ``model.eval()`` that runs only what its gates select.

    Any network of `dsn_models` becomes one operator from image to logits (a GaterNet two: the gater first). In another
    model each part that is such a network, or a dense block, residual or Shake-Shake unit, gradual layer, Inception
    block, transition or head of `dsn_models`, is replaced and the rest stays as it is; ``swapped`` on the
    result names what was replaced, ``kept`` what was not and why, of which a warning tells too. The model given is left
    untouched; its weights are copied.

    What a network computes is told by what is in it, not by its class alone: a part that was replaced, changed, hooked
    or overridden so that the kernels would compute something else is refused by its path. Equal in evaluation, and
    served: SyncBatchNorm, dropout, identities, parametrised weights, sequences that come to the same. Then a spot check
    runs two random images through both and refuses outputs that differ by more than rounding.

    The result is for inference: its parameters do not require gradients, and inputs that do are refused.

    Args:
        model: trained; weights on the CPU, of any floating type.
        dtype: of weights and activations: float32; on a GPU also float16 and bfloat16. On a CPU with AVX-512 bfloat16
            too, for networks of `dsn_models` as a whole: convolutions multiply bfloat16 and sum in float32; gates,
            gaters, stems, transitions and heads of dense networks and all else are float32. Fast where the CPU has
            AVX512_BF16 (`dsn info`), elsewhere right and slower than float32. Images may be float32 all the same.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` (NVIDIA and AMD GPUs, without nvcc; with TRITON_INTERPRET=1 in the
            environment also the CPU, for tests: slow), ``"reference"`` (the model itself, in eval mode) or ``"auto"``:
            the CPU's, and on a GPU the one that measured times prefer for each operator (`dsn info` says which,
            `dsn bench --tune` measures).
        device: where the result runs; a GPU for ``"cuda"`` and ``"triton"``, else the CPU.
        cuda_graph: on a GPU, replay the launches of a network of `dsn_models` as one CUDA graph, of a GaterNet two:
            True, or the batch sizes to capture; smaller batches are padded to the next.
        example: an input, or a tuple of all arguments, of a model of your own. It is run once: parts that the model
            does not call as a whole stay in torch, and the spot check compares the whole model's outputs. A model
            that tells its ``example_images``, as one of a checkpoint of ``dsn gate`` does, needs none.
        strict: refuse a model of your own if torch would compute a part of it.
        cache: a folder in which the export of a model of your own is kept, so that the next process need not make it;
            one that nobody else writes to, for a file may hold code. What is found there has to pass the spot check in
            any case, and is exported anew if it does not.
        verify: make the spot check. Backends that play a GPU on the host make none.

    Raises:
        UserError: the kernels would not compute what the model does, nothing in it can be accelerated, a weight holds
            NaN or infinity or is not on the CPU, or dtype, backend, device, cuda_graph or example are not served.

    >>> import torch, dsn_models, dsn_kernels
    >>> fast = dsn_kernels.accelerate(dsn_models.create("dsn-navon", image_size=16))
    >>> coarse, fine = fast(torch.rand(2, 1, 16, 16))
    >>> coarse.shape, fast.last_gates["fine"].dtype
    (torch.Size([2, 10]), torch.uint8)
    """
    if backend not in _BACKENDS and backend not in RUNNERS:
        raise UserError(f"backend is {backend!r}; expected one of {', '.join(_BACKENDS)}")
    backend, device = _resolve(backend, device, dtype)
    gpu = backend not in ("cpu", "reference")  # once it is resolved, "auto" is a choice on a GPU
    if dtype not in (_GPU_DTYPES if gpu else _CPU_DTYPES if backend == "cpu" else _CPU_DTYPES[:1]):
        raise UserError(f"dtype is {dtype}; the {'GPU' if gpu else 'CPU'} kernels serve {_served(gpu)}")
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}; expected a torch.nn.Module, such as dsn_models.load(...)")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if backend == "cpu" and dtype == torch.bfloat16:
        _check_bfloat16(model)
    if cuda_graph and device.type != "cuda":
        raise UserError(f"cuda_graph is for a GPU; the device is '{device}'")
    if not isinstance(cuda_graph, bool) and not (cuda_graph and all(isinstance(n, int) and n > 0 for n in cuda_graph)):
        raise UserError(f"cuda_graph is {cuda_graph!r}; expected True, False or positive batch sizes")
    _check_weights(model)
    if backend == "reference":
        return _copy(model)
    if backend == "auto":
        makers = _chosen_makers(model, dtype, device, cuda_graph)
    else:
        makers = _makers(Target(backend, dtype, cuda_graph))
    verify = verify and device.type == ("cuda" if gpu else "cpu")
    family = capture.family_of(model)
    changed = family is not None and _changes_parts_alone(model, family, example)
    if family is not None and family in makers and not changed:
        fast = makers[family](model).to(device)
        if verify:
            check_accelerated(model, fast, type(model).__name__, dtype, device)
        hand_on(model, fast)
        return fast
    if cuda_graph:
        raise UserError(f"cuda_graph is for a network of dsn_models as a whole; the model is a {type(model).__name__}")
    if example is None:
        example = getattr(model, "example_images", None)
    decides = changed and family is not None and _decides_as_a_whole(family)
    parts = not decides and any(capture.family_of(module) in makers for module in model.modules())
    inputs = example if isinstance(example, tuple) else () if example is None else (example,)
    if inputs and all(isinstance(x, torch.Tensor) and x.dim() > 1 for x in inputs) and backend != "auto":
        folder = None if cache is None else Path(cache)
        whole = _capture(model, inputs, Target(backend, dtype), device, parts, verify, folder)
        if whole is not None:
            if strict and whole.kernel_share < 1:
                raise UserError(f"strict: {whole.summary().splitlines()[-1]}; torch would compute the rest")
            hand_on(model, whole)
            return whole
    if decides:
        raise UserError(
            f"the gates of the {type(model).__name__} would be lost; expected images as example, and on a GPU a "
            "backend by name"
        )
    return _swap_parts(model, makers, dtype, device, example, verify)


def _capture(
    model: nn.Module,
    inputs: tuple[Any, ...],
    target: Target,
    device: torch.device,
    parts: bool,
    verify: bool,
    cache: Path | None,
    fresh: bool = False,
) -> CapturedModel | None:
    """The model, captured; None where its ``parts`` are to be replaced: it says no gate word, or torch refuses it."""
    try:
        captured, structure, capture_at, found = capture.capture_model(model, inputs, cache, fresh)
    except UserError:
        if parts:
            return None
        raise
    gates = sum(len(plan.emitted.gates) for plan in captured.plans)
    if not captured.plans or (parts and not gates):
        return None
    shapes = tuple(tuple(x.shape[1:]) for x in inputs)
    whole = CapturedModel(captured, shapes, capture_at, structure, target, _gates_name(model, gates)).to(device)
    try:
        if verify or found:
            check_captured(model, whole, inputs, target.dtype, device)
    except UserError:
        if not found:
            raise
        return _capture(model, inputs, target, device, parts, verify, cache, fresh=True)
    return whole


def _gates_name(model: Any, gates: int) -> str | None:
    """The one name that a model has for all of its gates, if it tells one."""
    counts = getattr(model, "gate_counts", None)
    return next(iter(counts)) if isinstance(counts, Mapping) and [*counts.values()] == [gates] else None


def _changes_parts_alone(model: nn.Module, family: type[nn.Module], example: Any) -> bool:
    """Whether a subclass of a network overrides what puts the parts together, so that only the parts are the family's.

    Raises:
        UserError: the family decides its gates where it puts the parts together; the parts alone would skip nothing,
            and without an example the whole cannot be exported.
    """
    changed = capture.overrides(model, family)
    if changed and example is None and _decides_as_a_whole(family):
        raise UserError(
            f"model is a {type(model).__name__}, which overrides {', '.join(changed)} of {family.__name__}: its gates "
            f"would be lost; give an example of its images, accelerate a {family.__name__}, or run the model itself "
            "(backend='reference')"
        )
    return bool(changed) and family in capture.networks()


def _decides_as_a_whole(family: type[nn.Module]) -> bool:
    """Whether a family decides its gates where it puts its parts together, which by themselves have none."""
    return bool(capture.FAMILIES[family].limits) and not capture.FAMILIES[family].parts_decide


def _swap_parts(
    model: nn.Module, makers: _Makers, dtype: torch.dtype, device: torch.device, example: Any, verify: bool
) -> nn.Module:
    """A copy of a user's own model with accelerated parts in the places of its own."""
    fast: Any = _copy(model)
    inputs = () if example is None else example if isinstance(example, tuple) else (example,)
    called = called_modules(fast, inputs) if inputs else set(fast.modules())
    swapped: dict[str, nn.Module] = {}
    kept: dict[str, str] = {}
    made: dict[int, nn.Module] = {}  # of modules that the model has under several names
    for name, module in list(fast.named_modules(remove_duplicate=False)):
        family = capture.family_of(module)
        if family is None or family not in makers or any(name.startswith(done + ".") for done in swapped):
            continue
        try:
            if module not in called:
                raise UserError("the model does not call it as a whole")
            if id(module) not in made:
                _check_types(module, dtype)
                part = makers[family](module).to(device)
                if verify:
                    check_accelerated(module, part, type(module).__name__, dtype, device)
                made[id(module)] = part
        except UserError as error:
            kept[name] = str(error)
            continue
        parent, _, child = name.rpartition(".")
        setattr(fast.get_submodule(parent), child, made[id(module)])
        swapped[name] = made[id(module)]
    if not swapped:
        supported = ", ".join(sorted(cls.__name__ for cls in makers))
        served = f"supported: {supported} of dsn_models (zoo: {', '.join(dsn_models.zoo.names())})"
        reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items())
        raise UserError(
            f"model is a {type(model).__name__} without a part that can be accelerated; {reasons or served}"
        )
    for name, reason in kept.items():
        warnings.warn(f"{name} stays in torch: {reason}", stacklevel=3)
    fast.swapped, fast.kept = list(swapped), kept
    fast = fast.to(device)
    if verify and inputs:
        check_model(model, fast, inputs, dtype, device)
    return fast


def _check_weights(model: nn.Module) -> None:
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise UserError(f"{name} has no shape yet; run the model once before")
        if tensor.device.type != "cpu":
            raise UserError(f"model is on {tensor.device} ({name}); move it with model.cpu()")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"weights hold NaN or infinity: tensor {name}; load another checkpoint")


def _check_types(part: nn.Module, dtype: torch.dtype) -> None:
    """A part's neighbours stay as they are and hand it maps of their own type."""
    for name, tensor in part.named_parameters():
        if tensor.dtype not in (torch.float32, dtype):
            raise UserError(f"{name} is {tensor.dtype}; parts of a model are served in float32: model.float()")


def _copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters do not require gradients."""
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model is a {type(model).__name__} that cannot be copied: {reason}") from error


def _chosen_makers(
    model: nn.Module, dtype: torch.dtype, device: torch.device, cuda_graph: bool | Sequence[int]
) -> _Makers:
    """On a GPU, what accelerates each class: by the backend that measured times prefer for it."""
    from .choice import choose, times

    table, made = times(), dict[type[nn.Module], Callable[..., nn.Module]]()
    for kind in _makers(Target()):
        try:
            backend = choose(kind.__name__, device, dtype, table).backend
        except UserError:
            if type(model) is kind:
                raise
            continue
        made[kind] = _makers(Target(backend, dtype, cuda_graph))[kind]
    return made


def _makers(target: Target) -> _Makers:
    """What accelerates each class. On the CPU bfloat16 is for whole networks."""
    networks = dict.fromkeys(capture.networks(), partial(Accelerated, target=target))
    if target.backend == "cpu" and target.dtype == torch.bfloat16:
        return networks
    return {**networks, **dict.fromkeys(capture.parts(), partial(Part, target=target))}


def _check_bfloat16(model: nn.Module) -> None:
    if not _C.build_info()["bfloat16"]:
        raise UserError(
            f"dtype is {torch.bfloat16}; on the CPU it needs AVX-512, this one has {_C.build_info()['isa']}"
        )
    if capture.family_of(model) not in capture.networks():
        served = ", ".join(kind.__name__ for kind in capture.networks())
        raise UserError(f"dtype is {torch.bfloat16}; on the CPU it serves {served}, not a {type(model).__name__}")


def _served(gpu: bool) -> str:
    return ", ".join(map(str, _GPU_DTYPES if gpu else _CPU_DTYPES))


def _resolve(backend: str, device: torch.device | str | None, dtype: torch.dtype) -> tuple[str, torch.device]:
    """The backend that serves, and its device."""
    try:
        chosen = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:N'") from error
    if backend == "auto":
        if chosen is not None and chosen.type == "cuda" and (chosen.index or 0) < torch.cuda.device_count():
            return backend, chosen
        backend = "cpu" if chosen is None else chosen.type
    if backend == "triton":
        from .triton import resolve_device

        return backend, resolve_device(chosen, dtype)
    expected = "cuda" if backend == "cuda" else "cpu"
    chosen = chosen or torch.device(expected)
    if chosen.type != expected or (backend not in _BACKENDS and backend not in RUNNERS):
        raise UserError(f"device is '{chosen}'; the backend {backend!r} runs on 'cpu' or 'cuda', as its name says")
    if backend == "cuda":
        if not _C.build_info()["cuda"]:
            raise UserError("backend 'cuda' is not in this build; build it where nvcc is installed, see dsn info")
        if not torch.cuda.is_available():
            reason = _C.cuda_error() or "torch is built without CUDA"
            raise UserError(f"backend 'cuda' finds no device: {reason}")
        if chosen.index is not None and chosen.index >= torch.cuda.device_count():
            raise UserError(f"device is '{chosen}'; this machine has {torch.cuda.device_count()} CUDA devices")
    return backend, chosen
