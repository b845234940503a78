"""Adaptive computation time in ResNets (Figurnov et al., https://arxiv.org/abs/1612.02297, section 3.1).

SkipNet's Fig. 4 compares with it. Masks over the map, the paper's SACT, are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .computation import GateMacs, macs_by_module
from .densenet import check_images, init_weights
from .described import Described
from .errors import UserError
from .gates import ForcedGates, check_keys, resolve_forced_gates
from .macs import count_macs
from .resnet import ZOO as BACKBONES
from .resnet import OnResNet, ResNetConfig, config_on, make_resnet_head, make_resnet_stem, make_units
from .selection import Compute, run_gated
from .skipnet import UNITS, check_threshold

_BIAS = -3.0  # section 3.1: a network begins by running all of its units


@dataclass(frozen=True)
class AdaptiveTimeConfig(ResNetConfig):
    """What :class:`AdaptiveTimeNetwork` is built from: a residual network and when an image halts.

    Attributes:
        threshold: epsilon; a stage runs its next unit while more than this is left of an image's halting scores.

    Raises:
        UserError: a field has a value outside the above.
    """

    threshold: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)
        if max(self.stage_units) < 2:
            raise UserError(f"stage_units is {self.stage_units}; expected a stage of two units or more: its first runs")


class HaltingScore(nn.Module):
    """``h = sigmoid(w BN(pool(x)) + b)``, the score after a unit; the authors' code normalises what the paper pools.

    ``forward``: the unit's output [B, C, H, W] to [B].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(channels), nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.mean((2, 3)))).squeeze(1).sigmoid()


class AdaptiveTimeNetwork(OnResNet, Described, nn.Module):
    """In each stage an image runs units until its halting scores sum to ``1 - epsilon``, or the stage ends.

    Section 3.1. With x_n what a stage's n-th unit leaves, h_n the score of that and N the unit at which an image halts,
    it leaves ``y = sum_{n < N} h_n x_n + R x_N``, ``R = 1 - sum_{n < N} h_n``; it costs ``N + R``, the ponder cost.

    That is ``y_1 = x_1``, ``y_{n+1} = y_n + r_n (x_{n+1} - x_n)`` with ``r_n = 1 - sum_{m <= n} h_m``: the gate of
    unit n + 1 is open iff ``r_n > epsilon``, and a unit that does not run passes on what it reads, so that y stays.
    Forced gates decide that alone: r goes on to be the image's own, at least 0. The first unit of a stage has no gate.

    ``forward(images, forced_gates=None, thresholds=None)``: images [B, in_channels, image_size, image_size] to logits
    [B, classes]. Afterwards ``last_gates`` and ``last_scores`` hold ``{"units": [B, L]}``: which units ran (uint8) and
    the r that decided, detached; L = units - stages. In training all units are computed for all images, as in the
    paper, unless ``set_compute(model, "selected")`` says otherwise.

    Args of ``forward``:
        forced_gates: ``{"units": uint8 [B, L]}`` of 0 and 1, in place of the decisions.
        thresholds: epsilon, or ``{"units": epsilon}``; the configuration's if not given.

    Raises:
        UserError: images, forced gates or thresholds do not fit.
    """

    def __init__(self, config: AdaptiveTimeConfig) -> None:
        super().__init__()
        self.config = config
        self.compute: Compute = "masked"
        self.stem = make_resnet_stem(config)
        self.units = nn.ModuleList(make_units(config))
        stages = zip(config.stage_widths, config.stage_units, strict=True)
        self.halting = nn.ModuleList(HaltingScore(width) for width, count in stages for _ in range(count - 1))
        self.head = make_resnet_head(config)
        init_weights(self)
        for score in self.halting:
            nn.init.constant_(cast(Any, score).linear.bias, _BIAS)
        self.last_gates: dict[str, Tensor] = {}
        self.last_scores: dict[str, Tensor] = {}

    @property
    def gate_counts(self) -> dict[str, int]:
        """``{"units": L}``, the number of units but for the first of each stage."""
        return {UNITS: len(self.halting)}

    @property
    def stage_gates(self) -> list[int]:
        """Gates of each stage."""
        return [count - 1 for count in self.config.stage_units]

    @property
    def example_images(self) -> Tensor:
        """Zeros [1, in_channels, image_size, image_size], by which the kernels capture the network."""
        config = self.config
        return next(self.parameters()).new_zeros(1, config.in_channels, config.image_size, config.image_size)

    @property
    def gate_macs(self) -> GateMacs:
        """What each gate saves, of convolutions and linear layers; see :func:`.computation.gate_macs`."""
        counts, starts = macs_by_module(self), {sum(self.config.stage_units[:s]) for s in range(len(self.stage_gates))}
        gated = [i for i in range(len(self.units)) if i not in starts]
        units = [sum(macs for name, macs in counts.items() if name.startswith(f"units.{i}.")) for i in gated]
        dense = count_macs(self.dense_equivalent(), self.config)
        return GateMacs(sum(counts.values()) - sum(units), {UNITS: torch.tensor(units, dtype=torch.float64)}, dense)

    def gate_parameters(self) -> list[nn.Parameter]:
        """The parameters of the halting scores."""
        return list(self.halting.parameters())

    def forward(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> Tensor:
        return self.pondered(images, forced_gates, thresholds)[0]

    def pondered(
        self,
        images: Tensor,
        forced_gates: ForcedGates | None = None,
        thresholds: float | Mapping[str, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What ``forward`` leaves, and the ponder cost of each image, [B], summed over the stages; with gradients."""
        config, dtype = self.config, next(self.parameters()).dtype
        check_images(images, config.in_channels, config.image_size, dtype)
        forced = resolve_forced_gates(forced_gates, images.shape[0], self.gate_counts)[UNITS]
        limit = config.threshold if thresholds is None else thresholds
        if isinstance(limit, Mapping):
            check_keys(limit, "thresholds", (UNITS,))
            limit = limit[UNITS]
        check_threshold(limit)
        units, halting = iter(self.units), iter(self.halting)
        x, cost = self.stem(images), images.new_full((images.shape[0],), 2.0 * len(config.stage_units))
        taken: list[Tensor] = []
        scores: list[Tensor] = []
        for count in config.stage_units:
            x = y = next(units)(x)
            left: Any = 1.0  # and then [B]
            for _ in range(count - 1):
                unit, halt, before = next(units), next(halting)(x), x
                left = (left - halt).relu()
                gate = left > limit if forced is None else forced[:, len(taken)] != 0
                x = run_gated(unit, unit, (before,), gate, before, self.compute)
                y = y + left[:, None, None, None] * (x - before)
                cost = cost + gate * (1 - halt)  # N + R = 2 + sum of 1 - h_n over the gates that open
                taken.append(gate)
                scores.append(left)
            x = y
        self.last_gates = {UNITS: torch.stack(taken, 1).to(torch.uint8)}
        self.last_scores = {UNITS: torch.stack(scores, 1).detach()}
        return self.head(x), cost


def _act(name: str, depth: str, **options: Any) -> AdaptiveTimeConfig:
    backbone = next(config for config, _ in BACKBONES if config.name == f"resnet-{depth}")
    return config_on(AdaptiveTimeConfig, backbone, name=name, **options)


ZOO = (
    (_act("act-32", "32"), "CIFAR-10"),
    (_act("act-38", "38", shortcut="projection"), "CIFAR-10"),
    (_act("act-110", "110"), "CIFAR-10"),
    (_act("act-101-imagenet", "101"), "ImageNet"),
)
