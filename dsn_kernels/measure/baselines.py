"""The dense network, without gates, as a user would otherwise run it: six ways, each checked against eager."""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dsn_models import UserError
from dsn_models.errors import expected

from .networks import Outputs, as_outputs

Call = Callable[[Tensor], Outputs]
Made = Callable[[Tensor], "Tensor | Outputs"]

# Largest difference to eager float32, relative to its largest output; products of 8 bits go through a hundred layers.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


class BaselineUnavailable(Exception):
    """A baseline that cannot be had here; its text is the reason."""


def relative_error(got: Outputs, expected: Outputs) -> float:
    """max |got - expected| / max |expected|, the largest over the outputs."""
    return max(
        ((g - e).abs().max() / e.abs().max().clamp_min(1e-30)).item() for g, e in zip(got, expected, strict=True)
    )


def _eager(dense: nn.Module, images: Tensor) -> Made:
    return dense


def _channels_last(dense: nn.Module, images: Tensor) -> Made:
    network: Any = copy.deepcopy(dense)
    network.to(memory_format=torch.channels_last)
    return lambda x: network(x.to(memory_format=torch.channels_last))


def _compile(dense: nn.Module, images: Tensor) -> Made:
    return torch.compile(copy.deepcopy(dense), dynamic=False)


def _freeze(dense: nn.Module, images: Tensor) -> Made:
    """Inductor's freezing: weights become constants of the graph, packed for the convolution library."""
    return torch.compile(copy.deepcopy(dense), dynamic=False, options={"freezing": True})


def _onnx_bytes(dense: nn.Module, images: Tensor) -> bytes:
    failures = []
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        # Both exporters give graphs of equal speed; the TorchScript one takes seconds and needs no other package.
        for dynamo in (False, True):
            buffer: Any = io.BytesIO()
            try:
                torch.onnx.export(
                    dense,
                    (images,),
                    buffer,
                    input_names=["images"],
                    dynamo=dynamo,
                    verbose=False,
                )
                return buffer.getvalue()
            except Exception as error:
                failures.append(_reason(error))
    finally:
        log.setLevel(level)
    raise BaselineUnavailable(f"ONNX export failed: {failures[0]}; {failures[1]}")


def _onnxruntime(dense: nn.Module, images: Tensor) -> Made:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_onnx_bytes(dense, images), options, providers=["CPUExecutionProvider"])
    return lambda x: tuple(torch.from_numpy(y) for y in session.run(None, {"images": x.numpy()}))


def _openvino(dense: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32) -> Made:
    """By way of ONNX: it compiles to the graph that openvino.convert_model's does, and sends no telemetry."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # Where the processor has bf16 units OpenVINO would use them; it is compared at what ours computes in.
        "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 else "bf16",
    }
    compiled = core.compile_model(core.read_model(_onnx_bytes(dense, images)), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda x: tuple(torch.from_numpy(y) for y in request.infer(x.numpy(), share_inputs=True).values())


BASELINES: dict[str, Callable[[nn.Module, Tensor], Made]] = {
    "eager": _eager,
    "channels_last": _channels_last,
    "compile": _compile,
    "freeze": _freeze,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def runtimes() -> tuple[str, ...]:
    """Of the baselines that need a package of their own, those whose package is installed."""
    return tuple(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name) is not None)


def check_known(names: Iterable[str]) -> None:
    """Refuses a name that is none of :data:`BASELINES`.

    Raises:
        UserError: it is none.
    """
    for name in names:
        if name not in BASELINES:
            raise UserError(f"unknown baseline {name!r}; {expected(name, BASELINES)}")


def _reason(error: Exception) -> str:
    first_line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line}"[:300]


def build(name: str, dense: nn.Module, images: Tensor, dtype: torch.dtype = torch.float32) -> Call:
    """One of :data:`BASELINES` of ``dense``, made for the shape of ``images``, run once and checked against eager.

    Args:
        name: key of :data:`BASELINES`.
        dense: network without gates in ``eval()`` mode, float32 on the CPU; images to outputs.
        images: [B, C, H, W], contiguous.
        dtype: of OpenVINO's inference, float32 or bfloat16; the others know float32 alone.

    Returns:
        images to outputs; call it under ``torch.inference_mode()``.

    Raises:
        BaselineUnavailable: not installed, failed to build or run, or differs from eager by more than TOLERANCE.
    """
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = as_outputs(dense(images))
        try:
            made = (
                _openvino(dense, images, dtype)
                if name == "openvino" and dtype != torch.float32
                else BASELINES[name](dense, images)
            )

            def call(x: Tensor) -> Outputs:
                return as_outputs(made(x))

            error = relative_error(call(images), expected)
        except BaselineUnavailable:
            raise
        except ImportError as missing:
            raise BaselineUnavailable(f"not installed: pip install {missing.name or name}") from missing
        except Exception as failure:  # a baseline that fails is reported, not fatal
            raise BaselineUnavailable(_reason(failure)) from failure
    if not error <= TOLERANCE[dtype]:
        raise BaselineUnavailable(f"wrong answer: relative difference to eager is {error:.1e}")
    return call


def build_all(
    names: Iterable[str],
    dense: nn.Module,
    images: Tensor,
    on_start: Callable[[str], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Call], dict[str, str]]:
    """Builds each of ``names``: those that work, and of the others the reason. ``on_start`` is told each name first."""
    calls, missing = {}, {}
    for name in names:
        if on_start is not None:
            on_start(name)
        try:
            calls[name] = build(name, dense, images, dtype)
        except BaselineUnavailable as error:
            missing[name] = str(error)
    return calls, missing
