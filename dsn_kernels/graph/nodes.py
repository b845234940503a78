"""What a network is made of: typed nodes that hold the original weights, with batch norms folded, in float64.

Nodes read and write maps, which are buffers: a node may write part of one, or add to it in place. A node tells what it
does to sizes, gates and MACs; what follows from a graph as a whole is worked out in
:mod:`dsn_kernels.graph.analysis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .node import ACTIVATIONS, KEEP_ZERO, Affine, Gates, Map, Node, Window, Windowed, chosen_channels, mask_end

__all__ = [
    "ACTIVATIONS",
    "KEEP_ZERO",
    "Affine",
    "AvgPool",
    "Conv2d",
    "Decide",
    "DenseBlock",
    "DenseLayer",
    "Depthwise",
    "FullyConnected",
    "Gate",
    "Gates",
    "Head",
    "KEEP_ZERO",
    "Linear",
    "Load",
    "Map",
    "MaxPool",
    "Node",
    "PathHead",
    "Pointwise",
    "Pool",
    "PoolSums",
    "Recurrence",
    "Stem",
    "Store",
    "Subsample",
    "Transition",
    "Upsample",
    "Window",
    "Windowed",
    "chosen_channels",
    "decided_gates",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Load(Node):
    """The image that enters, into the first channels of ``dst``; ``out_mask``: first of the gates that choose them.

    Several tensors enter one behind another, as one of one pixel: this begins at its value ``src_offset``.
    """

    op = "load"
    out_mask: int = -1
    src_offset: int = 0

    def gates_end(self) -> int:
        return max(self.only_if + 1, mask_end(self.out_mask, self.in_channels))

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]]:
        return 0, chosen_channels(self.out_mask, self.in_channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stem(Node):
    """A 3x3 convolution of the image, weight [O, I, 3, 3], without bias."""

    op = "stem"
    weight: Tensor

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]]:
        return 0, chosen_channels(-1, self.out_channels)

    def macs(self, pixels: int, inputs: Tensor) -> int:
        return pixels * 9 * self.in_channels * self.out_channels


class DenseLayer(NamedTuple):
    """A layer of a dense block; each batch norm but the first is folded into the convolution before it.

    Attributes:
        norm: the BN-ReLU of its input.
        reduce, reduce_bias: [M, I, 1, 1] and [M] of the 1x1; None without a bottleneck.
        conv: [O, I or M, 3, 3].
        conv_bias, expand: [M] and [I, M, 1, 1] of a layer whose output is added to its input, else None.
        gate, gate_bias: the linear map of its gate, [I] and [1]; None where it always runs.
    """

    norm: Affine
    reduce: Tensor | None
    reduce_bias: Tensor | None
    conv: Tensor
    conv_bias: Tensor | None
    expand: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseBlock(Node):
    """Gated layers on one map, in place on ``dst``. Dual Skipping Networks, section 3.1.

    Attributes:
        gate: ``"hard"``, ``"soft"`` or ``"none"``.
        merge: ``"concat"``: a layer's output follows all before it; ``"add"``: it is added to the state.
        first_gate: of its layers.
    """

    op = "dense_block"
    layers: tuple[DenseLayer, ...]
    gate: str
    merge: str
    first_gate: int

    @property
    def out_channels(self) -> int:
        """Channels that a layer adds, or what it adds to."""
        last = self.layers[0].expand
        return len(self.layers[0].conv if last is None else last)

    @property
    def bottleneck(self) -> int:
        reduce = self.layers[0].reduce
        return 0 if reduce is None else len(reduce)

    @property
    def added(self) -> int:
        """Channels by which a layer widens the state."""
        return self.out_channels if self.merge == "concat" else 0

    def channels_before(self, layer: int) -> int:
        """Channels of the state that a layer reads."""
        return self.in_channels + layer * self.added

    def gates_end(self) -> int:
        return max(self.only_if + 1, self.first_gate + len(self.layers))

    def layer_macs(self, pixels: int, live: Tensor) -> Tensor:
        """Of a layer that runs, its gate not counted; ``live``: input channels that hold data, int64 [B]."""
        width = self.bottleneck
        if not width:
            return pixels * 9 * live * self.out_channels
        if self.merge == "add":
            return pixels * (2 * live * width + 9 * width * width)
        return pixels * (live * width + 9 * width * self.out_channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Transition(Node):
    """BN-ReLU-1x1, weight [O, I + G, 1, 1], and an average pool of 2x2.

    ``guide``: a map whose channels, enlarged, follow those of ``src``; -1 without.
    """

    op = "transition"
    norm: Affine
    weight: Tensor
    guide: int = -1

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height // 2, width // 2

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]]:
        return 0, chosen_channels(-1, self.out_channels)

    def macs(self, pixels: int, inputs: Tensor) -> Tensor:
        return pixels * inputs * self.out_channels


@dataclass(frozen=True, eq=False, kw_only=True)
class Head(Node):
    """BN-ReLU, global average, and a linear map [classes, C] whose outputs begin at logit ``out_offset``."""

    op = "head"
    norm: Affine
    weight: Tensor
    bias: Tensor
    out_offset: int = 0

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def macs(self, pixels: int, inputs: Tensor) -> int | Tensor:
        return inputs * self.out_channels


@dataclass(frozen=True, eq=False, kw_only=True)
class PathHead(Head):
    """A head whose features f become (1 + gamma) f + beta, with (gamma, beta) a linear map of the gates.

    ``path`` is [2, C, gates] and ``path_bias`` [2, C], gamma's first; the gates begin at ``first_gate``.
    """

    op = "path_head"
    path: Tensor
    path_bias: Tensor
    first_gate: int

    @property
    def gates(self) -> int:
        return self.path.shape[2]

    def macs(self, pixels: int, inputs: Tensor) -> int:  # scaled features, then the classifier; the path's are sums
        return self.in_channels * (1 + self.out_channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Windowed):
    """``dst[o] = activation(weight * relu(before(src)) + bias)``, each part optional but the convolution.

    Attributes:
        weight, bias: [O, I / groups, rows, columns] and [O], with the batch norm behind the convolution folded in.
        groups: the inputs and outputs fall into so many groups; each output is of the inputs of its group.
        before: the batch norm of a BN-ReLU of its input.
        activation: of the output, one of :data:`ACTIVATIONS`; ``activated``: of so many of its first channels alone, 0:
            of all.
        accumulate: the output is added to what ``dst`` holds, before the activation.
        pool: the pooled vector of ``dst`` is kept, which a gate or linear layer reads.
        src_offset, out_offset: first channels that are read and written.
        out_mask: the first of the gates that choose its filters, -1 without.
        exact: in float32 even where the plan multiplies bfloat16.
    """

    op = "conv2d"
    weight: Tensor
    bias: Tensor
    groups: int = 1
    before: Affine | None = None
    activation: str = "none"
    activated: int = 0
    accumulate: bool = False
    pool: bool = False
    src_offset: int = 0
    out_offset: int = 0
    out_mask: int = -1
    exact: bool = False

    def __post_init__(self) -> None:
        if self.out_mask >= 0 and self.activation not in KEEP_ZERO:
            raise ValueError(f"a filter that is off leaves zero, which {self.activation} does not keep")

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def gates_end(self) -> int:
        return max(self.only_if + 1, mask_end(self.out_mask, self.out_channels))

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]] | None:
        return None if self.accumulate else (self.out_offset, chosen_channels(self.out_mask, self.out_channels))


@dataclass(frozen=True, eq=False, kw_only=True)
class Depthwise(Windowed):
    """``dst[c] = activation(weight[c] * src[c] + bias[c])``: a convolution of each channel by itself.

    Zeros stand for a channel that holds no data.

    Attributes:
        weight, bias: [C, 1, rows, columns] and [C], with the batch norm behind the convolution folded in.
        activation: of the output, one of :data:`ACTIVATIONS`.
        src_offset, out_offset: first channels that are read and written.
    """

    op = "depthwise"
    weight: Tensor
    bias: Tensor
    activation: str = "none"
    src_offset: int = 0
    out_offset: int = 0

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]]:
        return self.out_offset, chosen_channels(-1, self.in_channels)

    def macs(self, pixels: int, inputs: Tensor) -> int:
        return pixels * self.window.taps * self.in_channels

    def listed_weights(self) -> dict[str, Tensor]:
        return {"weight": self.weight.flatten(1).T, "bias": self.bias}


@dataclass(frozen=True, eq=False, kw_only=True)
class Pointwise(Node):
    """``dst[c] = activation(factor[c] (scale[c] src[c] + shift[c]))``, each part optional; without any, a copy.

    Zeros stand for a channel that holds no data. ``src`` and ``dst`` may be one map: it then works in place.

    Attributes:
        affine: scale and shift, a batch norm that stands by itself; None: 1 and 0.
        factor: a map whose pooled vector holds a factor for each channel, from its first on; -1: none does.
        activation: one of :data:`ACTIVATIONS`.
        accumulate: what ``dst`` holds is added, before the activation.
        src_offset, out_offset: first channels that are read and written; the same in place.
    """

    op = "pointwise"
    affine: Affine | None = None
    factor: int = -1
    activation: str = "none"
    accumulate: bool = False
    src_offset: int = 0
    out_offset: int = 0

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]] | None:
        adds = self.accumulate or self.src == self.dst
        return None if adds else (self.out_offset, chosen_channels(-1, self.in_channels))

    def listed_weights(self) -> dict[str, Tensor]:
        return {} if self.affine is None else {"scale": self.affine.scale, "shift": self.affine.shift}


@dataclass(frozen=True, eq=False, kw_only=True)
class Upsample(Node):
    """Each pixel of ``src`` as ``stride`` x ``stride`` of ``dst``: the nearest neighbour.

    Zeros stand for a channel that holds no data.

    Attributes:
        stride: a whole factor.
        activation: one of :data:`ACTIVATIONS`.
        accumulate: what ``dst`` holds is added, before the activation.
        src_offset, out_offset: first channels that are read and written.
    """

    op = "upsample"
    stride: int
    activation: str = "none"
    accumulate: bool = False
    src_offset: int = 0
    out_offset: int = 0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return height * self.stride, width * self.stride

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]] | None:
        return None if self.accumulate else (self.out_offset, chosen_channels(-1, self.in_channels))


@dataclass(frozen=True, eq=False, kw_only=True)
class Subsample(Node):
    """Every stride-th pixel of ``src``, from channel ``out_offset`` on; the others of ``out_channels`` are zero."""

    op = "subsample"
    out_channels: int
    stride: int
    out_offset: int = 0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.stride), -(-width // self.stride)

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]]:
        return 0, chosen_channels(-1, self.out_channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool(Windowed):
    """Maximum or average over a window; pixels outside the map count in neither.

    ``src_offset``, ``out_offset``: first channels that are read and written; ``out_mask``: first of the gates that
    choose its channels, -1 without.
    """

    src_offset: int = 0
    out_offset: int = 0
    out_mask: int = -1

    def gates_end(self) -> int:
        return max(self.only_if + 1, mask_end(self.out_mask, self.in_channels))

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]]:
        kept = chosen_channels(self.out_mask, self.in_channels)
        return self.out_offset, [a + b for a, b in zip(read, kept, strict=True)]


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Pool):
    op = "max_pool"


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool(Pool):
    """``count_padding``: the zeros around the map, though not what lies beyond them, count in an average."""

    op = "avg_pool"
    count_padding: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class PoolSums(Node):
    """Keeps the pooled vector of ``src``."""

    op = "pool_sums"


class Recurrence(NamedTuple):
    """The LSTM(10, 10) that recurrent gates share, and its projection; torch's order of gates.

    ``input`` and ``hidden`` are [40, 10], ``bias`` [40] is the sum of both, ``projection`` [10], its bias [1].
    """

    input: Tensor
    hidden: Tensor
    bias: Tensor
    projection: Tensor
    projection_bias: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Gate(Node):
    """Decides gate ``first_gate`` from the pooled vector of ``src``. SkipNet, section 3.1.

    Attributes:
        weight, bias: [1, C] and [1], a sigmoid's argument; of a recurrent gate [10, C] and [10], its embedding.
        recurrence: that all recurrent gates share, None of any other.
        follows: a recurrent gate goes on from the one before.
    """

    op = "gate"
    weight: Tensor
    bias: Tensor
    first_gate: int
    recurrence: Recurrence | None = None
    follows: bool = False

    @property
    def gate(self) -> str:
        return "soft" if self.recurrence is None else "recurrent"

    def gates_end(self) -> int:
        return max(self.only_if, self.first_gate) + 1

    def macs(self, pixels: int, inputs: Tensor) -> int:  # a recurrent one embeds in 10, has an LSTM(10, 10), projects
        return 10 * self.in_channels + 8 * 100 + 10 if self.recurrence else self.in_channels

    def listed_weights(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True, eq=False, kw_only=True)
class Decide(Node):
    """Decides gates ``first_gate`` and, of several channels, those behind it, each by a value of ``src``'s pooled
    vector as its score.

    Attributes:
        in_channels: gates, one for each channel from ``src_offset`` on.
    """

    op = "decide"
    first_gate: int
    src_offset: int = 0

    def gates_end(self) -> int:
        return max(self.only_if + 1, self.first_gate + self.in_channels)


def decided_gates(node: Node) -> range:
    """The gates of units and filters that a node decides."""
    if not isinstance(node, (Gate, Decide)):
        return range(0)
    return range(node.first_gate, node.first_gate + (node.in_channels if isinstance(node, Decide) else 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """Logits from ``out_offset`` on: ``activation(weight p + bias)``, p the first ``in_channels`` of the pooled vector
    of ``src``; weight [O, C] and bias [O]."""

    op = "linear"
    weight: Tensor
    bias: Tensor
    out_offset: int = 0
    activation: str = "none"

    @property
    def out_channels(self) -> int:
        return len(self.weight)

    def macs(self, pixels: int, inputs: Tensor) -> int:
        return self.in_channels * self.out_channels

    def listed_weights(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}


@dataclass(frozen=True, eq=False, kw_only=True)
class FullyConnected(Linear):
    """As :class:`Linear`, but it leaves the pooled vector of ``dst``, a map of one pixel, from channel ``out_offset``
    on; nothing else of this map may be read."""

    op = "fully_connected"

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        return 1, 1

    def written(self, read: list[Gates]) -> tuple[int, list[Gates]]:
        return self.out_offset, chosen_channels(-1, self.out_channels)


@dataclass(frozen=True, eq=False, kw_only=True)
class Store(Node):
    """The first ``in_channels`` of ``src`` are the map that leaves.

    Several leave one behind another, as one of one pixel: this begins at its value ``out_offset``.
    """

    op = "store"
    out_offset: int = 0
