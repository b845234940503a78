"""What is done: kinds of kernels, networks, their sizes on a device and in a rehearsal. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_bars import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
MODEL = "concat-bc-100"  # whose gates are measured in every setting and beside every compiler
SETTINGS = ("open", "shut", "paper", "random:0.3", "random:0.5", "random:0.7", "equal:0.5")
DTYPES = ("float16", "bfloat16", "float32")  # what is measured is the first
TOGETHER = min(6, max(2, os.cpu_count() or 1))  # steps at a time where nothing is timed
SANITIZERS = ("memcheck", "racecheck", "synccheck")

_UNITS = {"stage_units": (1, 2), "stage_widths": (8, 16), "stem_width": 8}
_GATER = {"gater_options": {**_UNITS, "stem": "conv3x3"}, "gated": "all", "image_size": 8}


@dataclass(frozen=True)
class Kind:
    """A kind of kernel and the smallest network that launches it.

    Attributes:
        kernels: what it is there for; smaller ones (stem, load, transition, head, linear) come along.
        model, options: of `dsn_models.create`.
    """

    kernels: tuple[str, ...]
    model: str
    options: Mapping[str, Any]


KINDS = {
    "dense block": Kind(("resident_block",), MODEL, {"block_layers": (2, 1, 1), "image_size": 8}),
    "bottleneck layers": Kind(
        ("bottleneck_layer",), "dsn-121", {"growth_rate": 8, "block_layers": (1, 1, 1, 1), "image_size": 32}
    ),
    "plain layers": Kind(("plain_layer", "stem"), "concat-40", {"block_layers": (1, 1, 1), "image_size": 8}),
    "residual layers": Kind(
        ("residual_layer", "transition"),
        "add-166",
        {"growth_rate": 4, "stage_widths": (8, 16, 32), "block_layers": (1, 1, 1), "image_size": 8},
    ),
    "path head": Kind(("head",), "lsn-concat-bc-100", {"block_layers": (1, 1, 1), "image_size": 8}),
    "residual stage": Kind(("resident_stage", "load", "linear"), "skipnet-38-rnn", {**_UNITS, "image_size": 8}),
    "gated units": Kind(
        ("conv2d", "linear"),
        "skipnet-50-rnn-imagenet",
        {"stage_units": (1, 2), "stage_widths": (16, 32), "stem_width": 8, "image_size": 32},
    ),
    "split convolution": Kind(
        ("conv2d", "resample"),
        "resnet-50",
        {"stage_units": (1,), "stage_widths": (512,), "stem_width": 64, "image_size": 32},
    ),
    "gradual layer": Kind(("gradual_layer",), "gunn-15", {"widths": (24,), "segments": (2,), "image_size": 8}),
    "gradual layer, 7 blocks": Kind(
        ("gradual_layer",), "gunn-15", {"widths": (24,), "segments": (2,), "image_size": 14}
    ),
    "chosen bottlenecks": Kind(
        ("resident_bottleneck", "filter_lists"),
        "gaternet-resnet-164",
        {"backbone_options": {"stage_units": (2, 1), "stage_widths": (16, 32)}, **_GATER},
    ),
    "chosen concatenations": Kind(
        ("filter_lists", "conv2d"),
        "gaternet-densenet-100-12",
        {"backbone_options": {"block_layers": (2, 1)}, **_GATER},
    ),
    "windows": Kind(("resample", "conv2d", "pointwise"), "lenet", {"image_size": 16}),
}


@dataclass(frozen=True)
class Network:
    """A network that is timed, and that its times are held against.

    Attributes:
        options: of `dsn_models.create`.
        against: the network whose dense runs count, its own without gates if not given.
    """

    model: str
    batches: tuple[int, ...]
    settings: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    against: str = ""


TIMED = {
    MODEL: Network(MODEL, (1, 8, 64, 256, 1024), SETTINGS),
    **{f.name: Network(f.name, f.batches, f.settings, f.options, f.against) for f in FAMILIES},
}
# Of every other family of the zoo, held to the exact result at full size.
CHECKED = ("concat-40", "add-166", "lsn-concat-bc-100", "densenet-bc-100", "shake-shake-64d", "inception-v4", "lenet")

_TINY_UNITS = {"stage_units": (1, 1), "stage_widths": (8, 16), "stem_width": 8, "image_size": 8}
_TINY_GRADUAL = {"widths": (8,), "segments": (2,), "image_size": 8}
# Of a rehearsal; no Inception is small enough for the host.
TINY: dict[str, dict[str, Any]] = {
    MODEL: {"block_layers": (1, 1, 1), "image_size": 8},
    "skipnet-110-rnn": _TINY_UNITS,
    "gunn-15": _TINY_GRADUAL,
    "sunn-15": _TINY_GRADUAL,
    "gaternet-resnet-164": {
        "backbone_options": {"stage_units": (1,), "stage_widths": (16,)},
        "gater_options": {**_UNITS, "stem": "conv3x3"},
        "image_size": 8,
    },
    "skipnet-101-rnn-imagenet": {
        "stage_units": (1, 1),
        "stage_widths": (16, 32),
        "stem_width": 8,
        "image_size": 32,
    },
    "concat-40": {"block_layers": (1, 1, 1), "image_size": 8},
    "add-166": {"growth_rate": 4, "stage_widths": (8, 16, 32), "block_layers": (1, 1, 1), "image_size": 8},
    "lsn-concat-bc-100": {"block_layers": (1, 1, 1), "image_size": 8},
    "densenet-bc-100": {"block_layers": (1, 1), "image_size": 8},
    "shake-shake-64d": {"stage_units": (1, 1), "width": 8, "image_size": 8},
    "lenet": {"image_size": 16},
}


@dataclass(frozen=True)
class Scale:
    """How much of everything is done.

    Attributes:
        rehearsal: without a device: small networks and stand-ins.
        faults: what goes wrong on purpose, by step; of a rehearsal.
    """

    rehearsal: bool = False
    faults: Mapping[str, str] = field(default_factory=dict)

    def options(self, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**options, **(TINY[model] if self.rehearsal else {})}

    def batches(self, network: Network) -> tuple[int, ...]:
        """Timed."""
        if self.rehearsal:
            return (1, 2) if network.model == MODEL else (1,)
        return network.batches

    @property
    def checked(self) -> tuple[str, ...]:
        """Held to the exact result: all that is timed, and the rest of the zoo's families."""
        return (*TIMED, *(name for name in CHECKED if not self.rehearsal or name in TINY))

    @property
    def kind_batches(self) -> tuple[int, ...]:
        """For which a kind of kernel is tried: also more samples than a gate word holds."""
        return (3,) if self.rehearsal else (3, 70)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return DTYPES[:1] if self.rehearsal else DTYPES

    @property
    def turn_ms(self) -> float:
        """Of one contestant before the next has its turn."""
        return 0.1 if self.rehearsal else 30.0

    @property
    def rounds(self) -> int:
        return 1 if self.rehearsal else 7
