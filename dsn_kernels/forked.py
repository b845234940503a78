"""A forked child computes with one thread where its parent had several, which are gone and OpenMP would wait for."""

from __future__ import annotations

import os

import torch

_threads_before_fork = 1


def _count_threads() -> None:
    global _threads_before_fork
    try:
        _threads_before_fork = len(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        _threads_before_fork = 2


def _compute_alone() -> None:
    if _threads_before_fork > 1:
        torch.set_num_threads(1)


def survive_forks() -> None:
    """From now on the children of ``os.fork``, and so of ``multiprocessing``, run the kernels instead of hanging."""
    os.register_at_fork(before=_count_threads, after_in_child=_compute_alone)
