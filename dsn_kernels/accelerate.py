"""From a trained reference model to one that computes only what its gates open."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

import dsn_models
from dsn_models.densenet import Head, Transition
from dsn_models.dual_skipping import SkipDenseBlock
from dsn_models.errors import UserError

from . import _C
from . import nn as twins

_Twins = Mapping[type[nn.Module], Callable[..., nn.Module]]
_TWINS: _Twins = {
    **dict.fromkeys(twins.NETWORKS, twins.Network),
    **dict.fromkeys(twins.STAGES, twins.Stage),
    SkipDenseBlock: twins.DenseBlock,
    Transition: twins.Transition,
    Head: twins.Head,
}
_BACKENDS = ("auto", "cpu", "cuda", "triton", "simt", "reference")
_GPU_BACKENDS = ("cuda", "triton", "simt", "auto")  # "auto" once it is resolved: a choice on a GPU
_CPU_DTYPES = (torch.float32, torch.bfloat16)
_GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def accelerate(
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    device: torch.device | str | None = None,
    graph: bool | Sequence[int] = False,
) -> nn.Module:
    """Returns a model with the same call and outputs as ``model.eval()`` that runs only what its gates select.

    Any network of `dsn_models` becomes one operator from image to logits (a GaterNet two: the gater first). In another
    model each part that is such a network, or a dense block, residual or Shake-Shake unit, gradual layer, Inception
    block, transition or head of `dsn_models`, is replaced by its twin and the rest stays as it is; ``swapped`` on the
    result names what was replaced. The model given is left untouched; its weights are copied.

    Args:
        model: trained; weights on the CPU.
        dtype: of weights and activations: float32; on a GPU also float16 and bfloat16. On a CPU with AVX-512 bfloat16
            too, for networks of `dsn_models` as a whole: convolutions multiply bfloat16 and sum in float32; gates,
            gaters, stems, transitions and heads of dense networks and all else are float32. Fast where the CPU has
            AVX512_BF16 (`dsn info`), elsewhere right and slower than float32. Images may be float32 all the same.
        backend: ``"cpu"``, ``"cuda"``, ``"triton"`` (NVIDIA and AMD GPUs, without nvcc; with TRITON_INTERPRET=1 in the
            environment also the CPU, for tests: slow), ``"simt"`` (the CUDA kernels, played on the host for tests:
            slow), ``"reference"`` (the model itself, in eval mode) or ``"auto"``: the CPU's, and on a GPU the one that
            measured times prefer for each operator (`dsn info` says which, `dsn bench --tune` measures).
        device: where the result runs; a GPU for ``"cuda"`` and ``"triton"``, else the CPU.
        graph: on a GPU, replay the launches of a network of `dsn_models` as one CUDA graph, of a GaterNet two: True, or
            the batch sizes to capture; smaller batches are padded to the next.

    Raises:
        UserError: nothing in the model can be accelerated, a weight holds NaN or infinity or is not on the CPU, or
            dtype, backend, device or graph are not served.
    """
    if backend not in _BACKENDS:
        raise UserError(f"backend is {backend!r}; expected one of {', '.join(_BACKENDS)}")
    backend, device = _resolve(backend, device, dtype)
    gpu = backend in _GPU_BACKENDS
    if dtype not in (_GPU_DTYPES if gpu else _CPU_DTYPES if backend == "cpu" else _CPU_DTYPES[:1]):
        raise UserError(f"dtype is {dtype}; the {'GPU' if gpu else 'CPU'} kernels serve {_served(gpu)}")
    if backend == "cpu" and dtype == torch.bfloat16:
        _check_bfloat16(model)
    if graph and device.type != "cuda":
        raise UserError(f"graph is for a GPU; the device is '{device}'")
    if not isinstance(graph, bool) and not (graph and all(isinstance(n, int) and n > 0 for n in graph)):
        raise UserError(f"graph is {graph!r}; expected True, False or positive batch sizes")
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}; expected a torch.nn.Module, such as dsn_models.load(...)")
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "cpu":
            raise UserError(f"model is on {tensor.device} ({name}); move it with model.cpu()")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"weights hold NaN or infinity: tensor {name}; load another checkpoint")
    if backend == "reference":
        return copy.deepcopy(model).eval()
    twin_of = _TWINS
    if backend == "cpu" and dtype == torch.bfloat16:
        twin_of = {type(model): partial(twins.Network, target=twins.Target("cpu", dtype))}
    if gpu:
        chosen = backend == "auto"
        twin_of = _chosen_twins(model, dtype, device, graph) if chosen else _gpu_twins(dtype, backend, graph)
    twin = _twin(model, twin_of)
    if twin is not None:
        return twin.to(device)
    if graph:
        raise UserError(f"graph is for a network of dsn_models as a whole; the model is a {type(model).__name__}")
    fast: Any = copy.deepcopy(model).eval()
    swapped: list[str] = []
    for name, module in list(fast.named_modules()):
        parent, _, child = name.rpartition(".")
        if any(name.startswith(done + ".") for done in swapped):
            continue
        twin = _twin(module, twin_of)
        if twin is not None:
            setattr(fast.get_submodule(parent), child, twin)
            swapped.append(name)
    if not swapped:
        supported = ", ".join(sorted(cls.__name__ for cls in twin_of))
        raise UserError(
            f"model is a {type(model).__name__} without a part that can be accelerated; supported: {supported} "
            f"of dsn_models (zoo: {', '.join(dsn_models.zoo.names())})"
        )
    fast.swapped = swapped
    return fast.to(device)


def _twin(module: nn.Module, twin_of: _Twins) -> nn.Module | None:
    make = twin_of.get(type(module))
    return None if make is None else make(module)


def _chosen_twins(model: nn.Module, dtype: torch.dtype, device: torch.device, graph: bool | Sequence[int]) -> _Twins:
    """On a GPU, the twins of the backend that the table of measured times prefers for each operator."""
    from .choice import choose, times

    table, made = times(), {}
    for cls in _TWINS:
        try:
            backend = choose(cls.__name__, device, dtype, table).backend
        except UserError:
            if type(model) is cls:
                raise
            continue
        served = _gpu_twins(dtype, backend, graph)
        if cls in served:
            made[cls] = served[cls]
    return made


def _gpu_twins(dtype: torch.dtype, backend: str, graph: bool | Sequence[int]) -> _Twins:
    from .nn import gpu

    return {
        **dict.fromkeys(twins.NETWORKS, partial(twins.Network, target=twins.Target(backend, dtype, graph))),
        SkipDenseBlock: partial(gpu.GpuDenseBlock, dtype=dtype, backend=backend),
        Transition: partial(gpu.GpuTransition, dtype=dtype, backend=backend),
        Head: partial(gpu.GpuHead, dtype=dtype, backend=backend),
    }


def _check_bfloat16(model: nn.Module) -> None:
    if not _C.build_info()["bfloat16"]:
        raise UserError(
            f"dtype is {torch.bfloat16}; on the CPU it needs AVX-512, this one has {_C.build_info()['isa']}"
        )
    if type(model) not in twins.NETWORKS:
        served = ", ".join(kind.__name__ for kind in twins.NETWORKS)
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
    if chosen.type != expected or backend not in _BACKENDS:
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
