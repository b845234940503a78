"""Any network, accelerated from what ``torch.export`` sees of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_unflatten

from dsn_models.errors import UserError

from ..capture.emit import Emitted
from ..graph import Graph, count_macs
from ..ops import Outputs, refuse_gradients
from .cuda_graphs import check_forced, check_threshold
from .fixed import Fixed
from .runner import make_runner
from .target import Target

_SIZES = 8  # of images whose plans are kept

# From a size, height and width, to the network for images of that size, or a UserError.
Capture = Callable[[int, int], Emitted]


class CapturedModel(Fixed):
    """Same call and same outputs as the model in ``eval()``; computes only what its gates open.

    It stands for any module of one batch of images whose operations have kernels. Where the module says
    :func:`dsn_models.functional.where_open` or :func:`~dsn_models.functional.choose_filters`, what a gate shuts is not
    computed. After each call ``last_gates``, ``last_scores`` and ``last_macs`` say what it did.

    Args:
        first: the network for images of ``size``, height and width.
        capture: captures it for another size.
        outputs: how the model structures its outputs.
        target: what it runs on.

    Args of ``forward``:
        images: [B, C, H, W], float32 or of the target's dtype; other sizes than the first are captured when they come,
            and the eight that were used last are kept.
        forced_gates: ``{name: uint8 [B, L]}`` of 0 and 1 for each name in ``layers``, in place of the decisions.
        thresholds: one number for all gates, or ``{name: number}``; those of the model if not given.

    Raises:
        UserError: images, forced gates or thresholds do not fit or lie on another device, or the model does not run on
            images of such a size.
    """

    thresholds: Tensor

    def __init__(
        self, first: Emitted, size: tuple[int, int], capture: Capture, outputs: TreeSpec, target: Target
    ) -> None:
        super().__init__()
        self.target, self._structure = target, outputs
        self._capture: Capture | None = capture
        self.layers: dict[str, int] = {}
        for name in first.gates:
            self.layers[name] = self.layers.get(name, 0) + 1
        self._outputs, self._columns = first.outputs, first.gates
        self.in_channels = first.graph.nodes[0].in_channels
        self.register_buffer("thresholds", torch.tensor(first.thresholds, dtype=torch.float32), persistent=False)
        self.runners = nn.ModuleDict()
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._keep(first, size)
        none = torch.empty(0, len(self._columns))
        self._last = (none.byte(), none, torch.empty(0, dtype=torch.int64))
        self.eval()
        self.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        forced_gates: Mapping[str, Tensor] | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> Any:
        self._check(images)
        forced = None if forced_gates is None else self._join(forced_gates, len(images))
        limits = self.thresholds if thresholds is None else self._limits(thresholds)
        x = images.float() if self.target.backend == "cpu" else images.to(self.target.dtype)
        out: Outputs = self._runner(images.shape[2], images.shape[3])(x, limits, forced)
        if not torch.compiler.is_exporting():
            self._last = (out.gates, out.scores, out.macs)
        return tree_unflatten(
            [self._output(out, each.shape, each.first, images) for each in self._outputs], self._structure
        )

    def _output(self, out: Outputs, shape: tuple[int, ...], first: int, images: Tensor) -> Tensor:
        if first < 0:
            return out.map if len(shape) == 3 else out.map.flatten(1)
        count = shape[0]
        return out.logits[:, first : first + count].view(len(images), *shape)

    @property
    def runner(self) -> Any:
        """What runs images of the first size."""
        return next(iter(self.runners.values()))

    @property
    def graph(self) -> Graph:
        """What is run for images of the first size, with tensors that have a shape alone."""
        return self.runner.graph  # type: ignore[no-any-return]

    @property
    def parts(self) -> dict[str, CapturedModel]:
        """What holds a graph: this alone. As of a network of the zoo, of which a timeline is made."""
        return {"": self}

    @property
    def last_gates(self) -> dict[str, Tensor]:
        """What each gate did in the last call, uint8 [B, L] by name: 1 = open."""
        return self._split(self._last[0])

    @property
    def last_scores(self) -> dict[str, Tensor]:
        """The gates' scores in the last call, float32 [B, L] by name."""
        return self._split(self._last[1])

    @property
    def last_macs(self) -> Tensor:
        """Multiply-accumulates of the last call, counted by the kernels while they ran, int64 [B]."""
        return self._last[2]

    def margins(self) -> list[tuple[Tensor, Tensor]]:
        """The scores of the last call and the thresholds of its gates, by gate."""
        return [(self._last[1][:, i], limit) for i, limit in enumerate(self.thresholds)]

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of an image with all gates open, by formula."""
        return int(count_macs(self.graph, torch.ones(1, len(self._columns), dtype=torch.uint8))[0])

    def summary(self) -> str:
        """What runs in kernels, and what it costs with all gates open and all shut."""
        open, shut = (
            int(count_macs(self.graph, torch.full((1, len(self._columns)), value, dtype=torch.uint8))[0])
            for value in (1, 0)
        )
        lines = [
            f"1 plan on {self.target.backend}, {self.target.dtype}: {len(self.graph.nodes)} instructions, 100 % of the MACs",
            f"{open / 1e6:.1f} M multiply-accumulates an image"
            + (f" with all gates open, {shut / 1e6:.1f} M with all shut" if self._columns else ""),
        ]
        lines += [f"  {name}: {count} {'gate' if count == 1 else 'gates'}" for name, count in self.layers.items()]
        return "\n".join(lines)

    def _runner(self, height: int, width: int) -> Any:
        key = f"{height}x{width}"
        if key not in self.runners:
            if self._capture is None:
                raise UserError(f"images are {height} x {width}; a copy runs on {', '.join(self.runners)}")
            self._keep(self._capture(height, width), (height, width))
        self._recent.move_to_end(key)
        return self.runners[key]

    def _keep(self, captured: Emitted, size: tuple[int, int]) -> None:
        key = f"{size[0]}x{size[1]}"
        runner = make_runner(captured.graph, self.target.dtype, self.target.backend)
        self.runners[key] = runner.to(self.thresholds.device)
        self._recent[key] = None
        if len(self._recent) > _SIZES:
            del self.runners[self._recent.popitem(last=False)[0]]

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != self.in_channels:
            given = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UserError(f"images are {given}; expected a batch [B, {self.in_channels}, H, W]")
        if images.dtype not in (torch.float32, self.target.dtype):
            raise UserError(f"images are {images.dtype}; expected {torch.float32} or {self.target.dtype}")
        if images.device != self.thresholds.device:
            raise UserError(f"images are on {images.device}; expected {self.thresholds.device}")
        refuse_gradients(images)

    def _limits(self, thresholds: float | Mapping[str, float]) -> Tensor:
        if not isinstance(thresholds, Mapping):
            return torch.full_like(self.thresholds, check_threshold(thresholds))
        if unknown := set(thresholds) - set(self.layers):
            raise UserError(f"thresholds name {sorted(unknown)}; expected some of {sorted(self.layers)}")
        limits = self.thresholds.clone()
        for i, name in enumerate(self._columns):
            if name in thresholds:
                limits[i] = check_threshold(thresholds[name])
        return limits

    def _split(self, joined: Tensor) -> dict[str, Tensor]:
        columns: dict[str, list[int]] = {name: [] for name in self.layers}
        for i, name in enumerate(self._columns):
            columns[name].append(i)
        return {name: joined[:, own] for name, own in columns.items()}

    def _join(self, forced_gates: Mapping[str, Tensor], batch: int) -> Tensor | None:
        if not isinstance(forced_gates, Mapping) or set(forced_gates) != set(self.layers):
            given = sorted(forced_gates) if isinstance(forced_gates, Mapping) else type(forced_gates).__name__
            raise UserError(f"forced_gates is {given}; expected a mapping with {sorted(self.layers)}")
        if not self._columns:
            return None
        joined = torch.empty(batch, len(self._columns), dtype=torch.uint8, device=self.thresholds.device)
        for name, count in self.layers.items():
            gates = forced_gates[name]
            if not isinstance(gates, Tensor) or gates.dtype != torch.uint8 or list(gates.shape) != [batch, count]:
                given = f"{gates.dtype} {list(gates.shape)}" if isinstance(gates, Tensor) else type(gates).__name__
                raise UserError(f"forced_gates[{name!r}] is {given}; expected torch.uint8 {[batch, count]}")
            joined[:, [i for i, own in enumerate(self._columns) if own == name]] = gates.to(joined.device)
        check_forced(joined)
        return joined

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle takes along: not the model, of which plans for other sizes would be made."""
        return {**self.__dict__, "_capture": None}
