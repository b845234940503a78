"""Training in several processes that is the same as in one: rows of a global batch, spread over the processes.

Process r of W holds rows ``[r B / W, (r + 1) B / W)`` of each global batch of B images. A loss that is a mean over
images is taken over the process's own rows; DistributedDataParallel averages the gradients. A loss on statistics of the
whole batch gathers them first (:func:`gather_rows`). Random numbers are drawn on the CPU for the whole batch, from the
generator that all processes seed alike, and :func:`own_rows` keeps one's own. With one process that is the identity.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UserError


def world_size() -> int:
    """W, the number of processes that train together; 1 outside of ``torchrun``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """r, this process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that ``torchrun`` started, if it did: gloo on the CPU, nccl on GPUs, one GPU per process.

    Yields this process's device.

    Raises:
        UserError: the variables that ``torchrun`` sets are missing or no numbers.
    """
    if dist.is_initialized() or _launched("WORLD_SIZE", "1") < 2:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", _launched("LOCAL_RANK", ""))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except ValueError as error:  # of a variable that it needs and does not find
        raise UserError(
            f"{os.environ['WORLD_SIZE']} processes cannot meet ({error}); start them with torchrun"
        ) from error
    try:
        yield device
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process, of those that ``torchrun`` started, is the one that prints and writes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _launched(name: str, default: str) -> int:
    given = os.environ.get(name, default)
    if not given.isdecimal():
        raise UserError(f"{name} is {given!r}; expected the number that torchrun sets: start with it, or unset {name}")
    return int(given)


def wait_for_all() -> None:
    """Returns once all processes are here."""
    if world_size() > 1:
        dist.barrier()


def own_rows(x: Tensor) -> Tensor:  # [W B, ...] -> [B, ...]
    """This process's rows of a tensor of the whole batch."""
    return x.chunk(world_size())[rank()]


def gather_rows(x: Tensor) -> Tensor:  # [B, ...] -> [W B, ...]
    """The rows of every process, in order; differentiable. All processes hold as many rows."""
    if world_size() == 1:
        return x
    whole = [torch.zeros_like(x)] * rank() + [x] + [torch.zeros_like(x)] * (world_size() - rank() - 1)
    return _all_reduce(torch.cat(whole))


def average(values: dict[str, float]) -> dict[str, float]:
    """The mean over the processes of each value; all have the same keys."""
    if world_size() == 1:
        return values
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None
    total = torch.tensor([*values.values()], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


class _AllReduce(torch.autograd.Function):
    """The sum over the processes, forward and backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad


def _all_reduce(x: Tensor) -> Tensor:
    return _AllReduce.apply(x)


class _GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the rows of all processes. ``torch.nn.SyncBatchNorm`` does this on GPUs only."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:  # [B, C] or [B, C, H, W]
        if not self.training:
            return super().forward(x)
        others = [0, *range(2, x.dim())]
        shape = [-1, *(1 for _ in range(2, x.dim()))]
        count = x.numel() // x.shape[1] * world_size()
        mean = _all_reduce(x.sum(others)) / count
        centred = x - mean.view(shape)
        variance = _all_reduce(centred.square().sum(others)) / count
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape))


def share_batch_norms(model: nn.Module) -> nn.Module:
    """``model`` with every batch norm normalising over the whole batch, not the process's rows. Same parameters."""
    if world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = _GlobalBatchNorm
    return model
