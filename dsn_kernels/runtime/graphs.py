"""Twins that run on the GPU kernels: on a GPU, or on the host runner that plays one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsn_models.densenet import Head as ReferenceHead
from dsn_models.densenet import Transition as ReferenceTransition
from dsn_models.dual_skipping import SkipDenseBlock
from dsn_models.errors import UserError

from .canonical import canonical
from .packing import Packer, block_width, pack_dense_block, pack_head, pack_transition
from .plan_runner import Outputs, Plan, Runner, make_runner

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
    """One graph with the tensors that it reads and writes."""

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
            raise UserError(f"a graph for {size} images cannot be captured: {reason}; try graph=False") from failure
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


class Graphs:
    """A plan's graphs, one for each batch size of ``sizes`` and kind of call, captured when first needed."""

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
                f"split it, or accelerate(..., graph=[..., {batch}])"
            )
        if torch.cuda.is_current_stream_capturing():
            raise UserError("a model with a graph of its own cannot be captured in another: use graph=False")
        key = (size, forced is None, image.dtype, image.device)
        # The tensors of a graph are written again by calls outside of inference mode, and have no history.
        with self._lock, torch.cuda.device(image.device), torch.inference_mode(False), torch.no_grad():
            if key not in self._captured:
                self._captured[key] = _Captured(self.runner, image, limits, forced, size)
            return self._captured[key].replay(image, limits, forced)

    def __deepcopy__(self, memo: dict[int, object]) -> Graphs:
        return Graphs(copy.deepcopy(self.runner, memo), self.sizes)


def make_graphs(runner: Runner, graph: bool | Sequence[int]) -> Graphs | None:
    """The graphs of a plan, of :data:`CAPTURED_SIZES` or the batch sizes given; None if none are wanted."""
    sizes = CAPTURED_SIZES if graph is True else tuple(sorted(set(graph))) if graph else ()
    return Graphs(runner, sizes) if sizes else None


class GpuDenseBlock(nn.Module):
    """`dsn_kernels.nn.DenseBlock` on the GPU kernels; x is float32 or ``dtype``, y of x's dtype."""

    def __init__(self, block: SkipDenseBlock, dtype: torch.dtype, backend: str) -> None:
        super().__init__()
        block, packer, plan = canonical(block), Packer(), Plan()
        fields = pack_dense_block(packer, block)
        self.layers = fields["layers"]
        buffer = plan.buffer(block_width(block), 1, 1)
        plan.add("load", dst=buffer, in_channels=fields["in_channels"])
        plan.add("dense_block", dst=buffer, **fields)
        plan.add("store", src=buffer, in_channels=block_width(block))
        self.runner = make_runner(plan, packer.tensor(), dtype, backend)

    def forward(self, x: Tensor, threshold: float = 0.5, forced: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        if forced is not None:
            check_forced(forced)
        limits = torch.full((self.layers,), check_threshold(threshold), dtype=torch.float32, device=x.device)
        out = self.runner.at(*x.shape[2:])(x, limits, forced)
        return out.map, out.gates, out.scores


class GpuTransition(nn.Module):
    """`dsn_kernels.nn.Transition` on the GPU kernels; x is float32 or ``dtype``, the result of x's dtype."""

    def __init__(self, module: ReferenceTransition, dtype: torch.dtype, backend: str) -> None:
        super().__init__()
        module, packer, plan = canonical(module), Packer(), Plan()
        pack_transition(packer, module, [])
        channels, out_channels = module.conv.in_channels, module.conv.out_channels
        before, after = plan.buffer(channels, 2, 2), plan.buffer(out_channels, 1, 1)
        plan.add("load", dst=before, in_channels=channels)
        plan.add("transition", src=before, dst=after, in_channels=channels, out_channels=out_channels)
        plan.add("store", src=after, in_channels=out_channels)
        self.runner = make_runner(plan, packer.tensor(), dtype, backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.runner.at(*x.shape[2:])(x, torch.empty(0, dtype=torch.float32, device=x.device)).map


class GpuHead(nn.Module):
    """`dsn_kernels.nn.Head` on the GPU kernels; x is float32 or ``dtype``, logits float32."""

    def __init__(self, module: ReferenceHead, dtype: torch.dtype, backend: str) -> None:
        super().__init__()
        module, packer, plan = canonical(module), Packer(), Plan()
        pack_head(packer, module, [])
        channels = module.classifier.in_features
        buffer = plan.buffer(channels, 1, 1)
        plan.add("load", dst=buffer, in_channels=channels)
        plan.add("head", src=buffer, in_channels=channels, out_channels=module.classifier.out_features)
        self.runner = make_runner(plan, packer.tensor(), dtype, backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.runner.at(*x.shape[2:])(x, torch.empty(0, dtype=torch.float32, device=x.device)).logits
