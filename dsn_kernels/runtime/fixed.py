"""What every accelerated module refuses: to be trained, or moved to where its packed weights do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from dsn_models.errors import UserError

from .target import Target


def told(name: str, target: Target, layers: Mapping[str, int], macs: int) -> str:
    """An accelerated network in a line."""
    gates = ", ".join(f"{count} {name}" for name, count in layers.items())
    gates = f"gates: {gates}" if gates else "no gates"
    dtype = str(target.dtype).removeprefix("torch.")
    return f"<{name}, accelerated: {target.backend}, {dtype}, {gates}, {macs / 1e6:,.2f} M MACs with all open>"


class Fixed(nn.Module):
    """A module whose weights are packed for one backend and type; it is copied, pickled and saved as any other.

    ``.to`` moves it between GPUs, or to where it is.

    Raises:
        UserError: from ``.to``, ``.half()`` and their like: another type or kind of device.
    """

    target: Target

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for tensor in self.buffers():
            moved = fn(tensor.new_empty(0))
            if moved.dtype != tensor.dtype:
                raise UserError(
                    f"the weights are packed for {self.target.dtype}, not {moved.dtype}: call "
                    f"dsn_kernels.accelerate(model, dtype={moved.dtype}) on the model itself"
                )
            if self.target.backend == "cpu" and moved.device.type not in ("cpu", "meta"):
                raise UserError(
                    f"the weights are packed for the CPU, not for '{moved.device}': call "
                    f"dsn_kernels.accelerate(model, device='{moved.device}') on the model itself"
                )
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # the kernels compute what evaluation does
