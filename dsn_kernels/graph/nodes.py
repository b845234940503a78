"""What a network is made of: typed nodes that hold the original weights, with batch norms folded, in float64.

Nodes read and write maps, which are buffers: a node may write part of one, or add to it in place. What follows from a
graph as a whole (which channels may hold no data, who reads what, MACs) is not stored here: see
:mod:`dsn_kernels.graph.analysis`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map_only


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
    """The pixels that a convolution or pool reads.

    ``pad_rows`` and ``pad_columns`` zeros lie before the map and as many behind it; if negative, so many of the map's
    own pixels are passed over.
    """

    rows: int
    columns: int
    stride: int = 1
    pad_rows: int = 0
    pad_columns: int = 0

    @property
    def taps(self) -> int:
        return self.rows * self.columns

    @property
    def keeps_size(self) -> bool:
        """Whether it is a 1x1 or 3x3 of stride 1 or 2 around each pixel, which has kernels of its own."""
        centred = (self.pad_rows, self.pad_columns) == (self.rows // 2, self.columns // 2)
        return self.rows == self.columns and self.rows in (1, 3) and self.stride in (1, 2) and centred

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what it leaves of a map of ``height`` x ``width``."""
        return (
            (height + 2 * self.pad_rows - self.rows) // self.stride + 1,
            (width + 2 * self.pad_columns - self.columns) // self.stride + 1,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One step of a network.

    Attributes:
        src, dst: maps that are read and written, -1 if none.
        in_channels: channels of ``src`` that are read.
        branch: name of the gates among which its gate is; "" in a network of one branch.
        where: what the node belongs to, as in ``"units.3"``, for reports; ``"gate"`` for the convolutions of a gate.
    """

    op: ClassVar[str]

    src: int = -1
    dst: int = -1
    in_channels: int
    branch: str = ""
    where: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Load(Node):
    """The image that enters, into the first channels of ``dst``; ``out_mask``: first of the gates that choose them."""

    op = "load"
    out_mask: int = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class Stem(Node):
    """A 3x3 convolution of the image, weight [O, I, 3, 3], without bias."""

    op = "stem"
    weight: Tensor

    @property
    def out_channels(self) -> int:
        return len(self.weight)


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Node):
    """``dst[o] = relu(weight * relu(before(src)) + bias)``, each part optional but the convolution.

    Attributes:
        weight, bias: [O, I, rows, columns] and [O], with the batch norm behind the convolution folded in.
        window: stride and padding.
        before: the batch norm of a BN-ReLU of its input.
        relu: of the output; ``relu_channels``: of so many of its first channels alone, 0: of all.
        accumulate: the output is added to what ``dst`` holds.
        pool: the pooled vector of ``dst`` is kept, which a gate or linear layer reads.
        src_offset, out_offset: first channels that are read and written.
        only_if: a gate: where it is shut, the convolution does not run; -1: it always does.
        out_mask: the first of the gates that choose its filters, -1 without.
        exact: in float32 even where the plan multiplies bfloat16.
    """

    op = "conv2d"
    weight: Tensor
    bias: Tensor
    window: Window
    before: Affine | None = None
    relu: bool = False
    relu_channels: int = 0
    accumulate: bool = False
    pool: bool = False
    src_offset: int = 0
    out_offset: int = 0
    only_if: int = -1
    out_mask: int = -1
    exact: bool = False

    @property
    def out_channels(self) -> int:
        return len(self.weight)


@dataclass(frozen=True, eq=False, kw_only=True)
class Subsample(Node):
    """Every stride-th pixel of ``src``, from channel ``out_offset`` on; the others of ``out_channels`` are zero."""

    op = "subsample"
    out_channels: int
    stride: int
    out_offset: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool(Node):
    """Maximum or average over a window; pixels outside the map count in neither.

    ``out_mask``: first of the gates that choose its channels, -1 without.
    """

    window: Window
    out_offset: int = 0
    out_mask: int = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool(Pool):
    op = "max_pool"


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool(Pool):
    op = "avg_pool"


@dataclass(frozen=True, eq=False, kw_only=True)
class PoolSums(Node):
    """Keeps the pooled vector of ``src``."""

    op = "pool_sums"


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """``in_channels`` of ``dst``, from ``out_offset`` on, += those of ``src`` from ``src_offset`` on."""

    op = "add"
    src_offset: int = 0
    out_offset: int = 0


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """Logits from ``out_offset`` on: weight [O, C] and bias [O] of the pooled vector of ``src``."""

    op = "linear"
    weight: Tensor
    bias: Tensor
    out_offset: int = 0

    @property
    def out_channels(self) -> int:
        return len(self.weight)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tanh(Node):
    """The hyperbolic tangent of the first ``in_channels`` of ``src``, in place."""

    op = "tanh"


@dataclass(frozen=True, eq=False, kw_only=True)
class Store(Node):
    """The first ``in_channels`` of ``src`` are the map that leaves."""

    op = "store"


class Region(NamedTuple):
    """Nodes ``begin`` to ``end`` belong together: ``kind`` is one of ``_C.REGIONS``."""

    kind: str
    begin: int
    end: int


@dataclass(eq=False)
class Graph:
    """A network: its maps, its nodes in the order in which they may run, and the regions that they form."""

    maps: list[Map] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)

    def map(self, channels: int, height: int, width: int | None = None) -> int:
        """Adds a map, a square one without ``width``; returns its number."""
        self.maps.append(Map(channels, height, height if width is None else width))
        return len(self.maps) - 1

    def add(self, node: Node) -> None:
        self.nodes.append(node)

    @contextmanager
    def region(self, kind: str | None) -> Iterator[None]:
        """The nodes that are added meanwhile form a region, unless ``kind`` is None."""
        begin = len(self.nodes)
        yield
        if kind is not None:
            self.regions.append(Region(kind, begin, len(self.nodes)))

    @property
    def gates(self) -> int:
        """Gated layers of all blocks, gated units and filters."""
        ends = [0]
        for node in self.nodes:
            if isinstance(node, DenseBlock):
                ends.append(node.first_gate + len(node.layers))
            elif isinstance(node, Gate):
                ends.append(node.first_gate + 1)
            elif isinstance(node, Conv2d):
                ends += [node.only_if + 1, node.out_mask + node.out_channels if node.out_mask >= 0 else 0]
            elif isinstance(node, (Pool, Load)):
                ends.append(node.out_mask + node.in_channels if node.out_mask >= 0 else 0)
        return max(ends)

    @property
    def logits(self) -> int:
        """Outputs of all heads."""
        heads = [node for node in self.nodes if isinstance(node, (Head, Linear))]
        return max([0, *(node.out_offset + node.out_channels for node in heads)])

    @property
    def stored(self) -> Map:
        """The map that leaves; of no channels if none does."""
        for node in self.nodes:
            if isinstance(node, Store):
                return self.maps[node.src]._replace(channels=node.in_channels)
        return Map(0, 1, 1)

    def without_weights(self) -> Graph:
        """The same with weights that have a shape and no data: what is left to ask when a backend has packed them."""

        def strip(node: Node) -> Node:
            return replace(node, **tree_map_only(Tensor, lambda weight: weight.to("meta"), vars(node)))

        return Graph(self.maps, [strip(node) for node in self.nodes], self.regions)

    def resized(self, height: int, width: int) -> Graph:
        """The same network for images of another size; it may have no linear layers on whole maps."""
        sizes: dict[int, tuple[int, int]] = {}
        for node in self.nodes:
            if node.dst >= 0 and node.dst not in sizes:
                sizes[node.dst] = (height, width) if node.src < 0 else _map_size(node, *sizes[node.src])
        maps = [Map(map.channels, *sizes[i]) for i, map in enumerate(self.maps)]
        return Graph(maps, self.nodes, self.regions)


def _map_size(node: Node, height: int, width: int) -> tuple[int, int]:
    """Height and width that a node leaves of a map."""
    if isinstance(node, Transition):
        return height // 2, width // 2
    if isinstance(node, Subsample):
        return -(-height // node.stride), -(-width // node.stride)
    if isinstance(node, (Conv2d, Pool)):
        return node.window.output_size(height, width)
    return height, width
