"""What all nodes share: maps, windows, the gates of channels, and what a node tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from .. import _C

# What may follow a node's sum: y = activation(x), by its name in torch. "none": y = x.
ACTIVATIONS = tuple(_C.ACTIVATIONS)
# Those that leave zero as it is.
KEEP_ZERO = ("none", "relu", "relu6", "silu", "hardswish", "tanh")

# The gates that must all be on for a channel to hold data; none: it always does.
Gates = tuple[int, ...]


def chosen_channels(mask: int, channels: int) -> list[Gates]:
    """Of channels that a mask chooses, which begins at gate ``mask``; -1: there is none."""
    return [(mask + c,) if mask >= 0 else () for c in range(channels)]


def mask_end(mask: int, channels: int) -> int:
    """One past the last gate of a mask, 0 without."""
    return mask + channels if mask >= 0 else 0


class Map(NamedTuple):
    """A buffer for a map of each sample: [channels, height, width]."""

    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


class Affine(NamedTuple):
    """A batch norm in evaluation, ``scale x + shift`` by channel; both float64 [C]."""

    scale: Tensor
    shift: Tensor


class Window(NamedTuple):
    """Of a convolution or pool: ``pad_rows`` and ``pad_columns`` zeros lie before the map, ``more_rows`` and
    ``more_columns`` more than that behind it; if negative, so many of the map's own pixels are passed over. Its taps
    lie ``dilation`` pixels apart. ``ceil``: a last window may reach beyond what lies behind the map, as torch's
    ``ceil_mode`` has it.
    """

    rows: int
    columns: int
    stride: int = 1
    pad_rows: int = 0
    pad_columns: int = 0
    dilation: int = 1
    more_rows: int = 0
    more_columns: int = 0
    ceil: bool = False

    @property
    def taps(self) -> int:
        return self.rows * self.columns

    @property
    def keeps_size(self) -> bool:
        """Whether it is a 1x1 or 3x3 of stride 1 or 2 around each pixel, which has kernels of its own."""
        centred = self[3:] == (self.rows // 2, self.columns // 2, 1, 0, 0, False)
        return self.rows == self.columns and self.rows in (1, 3) and self.stride in (1, 2) and centred

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Of the map that it leaves of one of ``height`` x ``width``."""
        rows = self._steps(height, self.rows, self.pad_rows, self.more_rows)
        return rows, self._steps(width, self.columns, self.pad_columns, self.more_columns)

    def _steps(self, size: int, taps: int, pad: int, more: int) -> int:
        room = size + 2 * pad + more - (self.dilation * (taps - 1) + 1)
        steps = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        return steps - (self.ceil and (steps - 1) * self.stride >= size + pad)  # none begins behind the map


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One step of a network.

    Attributes:
        src, dst: maps that are read and written, -1 if none.
        in_channels: channels of ``src`` that are read.
        only_if: a gate: where it is shut, the node does not run; -1: it always does.
        branch: name of the gates among which its gate is; "" in a network of one branch.
        where: what the node belongs to, as in ``"units.3"``, for reports; ``"gate"`` for the convolutions of a gate.
    """

    op: ClassVar[str]

    src: int = -1
    dst: int = -1
    in_channels: int
    only_if: int = -1
    branch: str = ""
    where: str = ""

    def gates_end(self) -> int:
        """One past the last gate that it decides, or by which it or a filter runs; 0: there is none."""
        return self.only_if + 1

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that it leaves of a map."""
        return height, width

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]] | None:
        """The first channel of ``dst`` that it writes anew, and the gates by which each of them holds data, given those
        of the channels that it reads; None where it adds to what is there, or works in place."""
        return None

    def macs(self, pixels: int, inputs: Tensor) -> int | Tensor:
        """MACs where it runs, with a map of ``pixels`` that it writes, or else reads, and ``inputs`` channels that it
        reads and that hold data, int64 [B]. Of dense blocks and convolutions see :func:`dsn_kernels.graph.trace`."""
        return 0

    def listed_weights(self) -> dict[str, Tensor]:
        """What ``instructions.def`` lists as its weights, by name; an entry may be smaller than there: zeros follow."""
        return {}


@dataclass(frozen=True, eq=False, kw_only=True)
class Windowed(Node):
    """What slides a window over a map; ``window``: its size, stride and padding."""

    window: Window

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return self.window.output_size(height, width)
