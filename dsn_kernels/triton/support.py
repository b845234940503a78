"""What differs between Triton's versions, its interpreter and its devices; the kernels see none of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch.library import custom_op, triton_op, wrap_triton

OLDEST = (3, 6)
VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
# TRITON_INTERPRET=1 when triton was imported: every kernel runs on the host, in NumPy.
INTERPRETED: bool = triton.knobs.runtime.interpret if VERSION >= OLDEST else False


def _mend_loops_over_numpy_2_4() -> None:
    """Before 3.8 the interpreter turns a loop's bound into an int in a way that NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def mended(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = mended


def _mend_masks_of_scalars() -> None:
    """A comparison of scalars, widened to a block, becomes of the type that was compared; 3.9 refuses it as a mask."""
    from triton.runtime.interpreter import InterpreterBuilder

    splat = InterpreterBuilder.create_splat

    def mended(builder: Any, block_type: Any, scalar: Any) -> Any:
        block = splat(builder, block_type, scalar)
        block.data = block.data.astype(scalar.data.dtype)
        return block

    InterpreterBuilder.create_splat = mended


if INTERPRETED and VERSION < (3, 8):
    _mend_loops_over_numpy_2_4()
if INTERPRETED and VERSION >= (3, 9):
    _mend_masks_of_scalars()


def register(name: str, mutates: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a launcher as ``dsn_triton::name``; `torch.compile` sees through it to the kernels.

    The interpreter's kernels have nothing to see, so there the operator is opaque.
    """

    def decorate(launcher: Callable[..., None]) -> Callable[..., None]:
        if not INTERPRETED:
            return triton_op(f"dsn_triton::{name}", launcher, mutates_args=mutates)
        op = custom_op(f"dsn_triton::{name}", launcher, mutates_args=mutates)
        op.register_fake(lambda *args, **kwargs: None)
        return op

    return decorate


def launch(kernel: Any, grid: Any, *args: Any, **meta: Any) -> None:
    """Starts a kernel in a way that tracing sees."""
    (kernel if INTERPRETED else wrap_triton(kernel))[grid](*args, **meta)


def autotuned(
    configs: Sequence[triton.Config],
    interpreted: triton.Config,
    *,
    key: Sequence[str],
    changes: Sequence[str],
    prune: Callable[..., list[triton.Config]],
) -> Callable[[Any], Any]:
    """The quickest of ``configs`` for each value of ``key``, measured at first use and kept on disk.

    Args:
        configs: what is tried on a device.
        interpreted: what the interpreter takes.
        key: arguments of the kernel.
        changes: arguments, never None, that a trial must leave as it found them.
        prune: drops configurations that cannot pay for these arguments.
    """
    if INTERPRETED:
        return triton.autotune([interpreted], key=list(key))
    return triton.autotune(
        list(configs),
        key=list(key),
        restore_value=list(changes),
        prune_configs_by={"early_config_prune": prune},
        cache_results=True,
    )


def precision(dtype: torch.dtype) -> str:
    """How a product of float32 is taken: as exactly as float32 asks, on tensor cores where they can."""
    nvidia = not INTERPRETED and torch.version.hip is None
    return "tf32x3" if dtype == torch.float32 and nvidia else "ieee"


def device_type() -> str | None:
    """Where kernels run: ``"cuda"`` (AMD too), ``"cpu"`` in the interpreter, None if nowhere."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu" if INTERPRETED else None
