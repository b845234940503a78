"""CUDA graphs of a plan, and what forced gates and thresholds are held to on every backend."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from dsn_models.errors import UserError

from ..ops import Outputs
from .runner import Runner

CAPTURED_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def check_forced(forced: Tensor) -> None:
    """Refuses gates that are neither 0 nor 1; not where a program is compiled or captured, which has no values yet."""
    if torch.compiler.is_compiling() or (forced.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if (most := int(forced.max()) if forced.numel() else 0) > 1:
        raise UserError(f"forced gates hold {most}; expected 0 (skip) and 1 (run) only")


def check_threshold(threshold: float) -> float:
    if not 0 <= float(threshold) <= 1:
        raise UserError(f"threshold is {threshold}; expected a number in [0, 1]")
    return float(threshold)


class _Captured:
    """One CUDA graph with the tensors that it reads and writes."""

    def __init__(self, runner: Runner, image: Tensor, limits: Tensor, forced: Tensor | None, size: int) -> None:
        self.image = image.new_zeros(size, *image.shape[1:])
        self.limits = limits.clone()
        self.forced = None if forced is None else forced.new_zeros(size, forced.shape[1])
        self.count = torch.zeros(1, dtype=torch.int32, device=image.device)
        self.filled = -1  # what count holds
        inputs = (self.image, self.limits, self.forced, self.count)
        stream = torch.cuda.Stream(image.device)
        stream.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(stream):  # first calls load kernels and make streams, which a capture must not
            runner(*inputs)
        torch.cuda.current_stream(image.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        failure: RuntimeError | None = None
        try:
            with torch.cuda.graph(self.graph, stream=stream):
                try:
                    self.out = runner(*inputs)
                except RuntimeError as error:  # what ends the capture then fails too, and says less
                    failure = error
        except RuntimeError as error:
            failure = failure or error
        if failure is not None:
            reason = str(failure).splitlines()[0]
            raise UserError(
                f"a CUDA graph for {size} images cannot be captured: {reason}; try cuda_graph=False"
            ) from failure
        # Behind the last call's reads of the tensors above, in whichever stream that was.
        self.done = torch.cuda.Event()
        self.done.record()

    def replay(self, image: Tensor, limits: Tensor, forced: Tensor | None) -> Outputs:
        batch = image.shape[0]
        self.done.wait()
        self.image[:batch].copy_(image)
        self.limits.copy_(limits)
        if forced is not None and self.forced is not None:
            self.forced[:batch].copy_(forced)
        if batch != self.filled:
            self.count.fill_(batch)
            self.filled = batch
        self.graph.replay()
        out = Outputs(*(t[:batch].clone() for t in self.out))
        self.done.record()
        return out


class CudaGraphs:
    """A plan's CUDA graphs, one for each batch size of ``sizes`` and kind of call, captured when first needed."""

    def __init__(self, runner: Runner, sizes: Sequence[int]) -> None:
        self.runner, self.sizes = runner, sizes
        self._captured: dict[tuple[object, ...], _Captured] = {}
        self._lock = threading.Lock()  # a call's inputs and its replay belong together

    def __call__(self, image: Tensor, limits: Tensor, forced: Tensor | None) -> Outputs:
        batch = image.shape[0]
        if batch == 0:
            return self.runner(image, limits, forced)
        size = next((s for s in self.sizes if s >= batch), None)
        if size is None:
            raise UserError(
                f"a batch of {batch} images is beyond the captured sizes, which end at {self.sizes[-1]}: "
                f"split it, or accelerate(..., cuda_graph=[..., {batch}])"
            )
        if torch.cuda.is_current_stream_capturing():
            raise UserError("a model with a CUDA graph of its own cannot be captured in another: use cuda_graph=False")
        key = (size, forced is None, image.dtype, image.device)
        # The tensors of a CUDA graph are written again by calls outside of inference mode, and have no history.
        with self._lock, torch.cuda.device(image.device), torch.inference_mode(False), torch.no_grad():
            if key not in self._captured:
                self._captured[key] = _Captured(self.runner, image, limits, forced, size)
            return self._captured[key].replay(image, limits, forced)

    def __deepcopy__(self, memo: dict[int, object]) -> CudaGraphs:
        return CudaGraphs(copy.deepcopy(self.runner, memo), self.sizes)


def make_cuda_graphs(runner: Runner, cuda_graph: bool | Sequence[int]) -> CudaGraphs | None:
    """The CUDA graphs of a plan, of :data:`CAPTURED_SIZES` or the batch sizes given; None if none are wanted."""
    sizes = CAPTURED_SIZES if cuda_graph is True else tuple(sorted(set(cuda_graph))) if cuda_graph else ()
    return CudaGraphs(runner, sizes) if sizes else None
