"""Latency and MACs of a gated network beside the dense network run six other ways, all in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

import dsn_kernels
from dsn_models import UserError
from dsn_models.dual_skipping import BRANCHES, DualSkippingConfig, DualSkippingNetwork

from . import machine
from .baselines import BASELINES, TOLERANCE, build_all, relative_error
from .gates import Gates, GateSetting
from .latency import InterleavedTimer, Latency

Images = Callable[[int, int], Tensor]

# Patterns change from call to call, so that a small batch is not measured on one draw.
_SAMPLES_DRAWN = 64
# The reference computes every layer and masks; so many samples of a batch are compared with it.
_SAMPLES_CHECKED = 8


class WrongAnswer(RuntimeError):
    """The accelerated network differs from the reference; nothing is worth timing."""


@dataclass(frozen=True)
class BenchSettings:
    """What :func:`bench` measures.

    Attributes:
        batches: batch sizes.
        gates: gate settings; all gates open is measured in any case.
        against: names of ``baselines.BASELINES``.
        dtype: of weights and activations.
        backend: of ``dsn_kernels.accelerate``.
        seed: of images and random gates.
        seconds: of timing per contestant and batch size; at least five rounds are run.
    """

    batches: Sequence[int] = (1, 8, 64)
    gates: Sequence[GateSetting] = (GateSetting("open"),)
    against: Sequence[str] = tuple(BASELINES)
    dtype: torch.dtype = torch.float32
    backend: str = "auto"
    seed: int = 0
    seconds: float = 3.0

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise UserError(f"batch is {list(self.batches)}; expected positive numbers, such as 1,8,64")
        for name in self.against:
            if name not in BASELINES:
                raise UserError(f"unknown baseline {name!r}; expected one of {', '.join(BASELINES)}")
        if self.seconds < 0:
            raise UserError(f"seconds is {self.seconds}; expected a number of at least 0")


class _Contestant:
    """The accelerated network under one gate setting; each call takes the next of ``inputs``."""

    def __init__(self, fast: Any, inputs: list[tuple[Tensor, Gates | None]]) -> None:
        self.fast, self.inputs = fast, inputs
        self._next = cycle(inputs)
        macs = []
        with torch.inference_mode():
            for images, gates in inputs:
                if gates is None:
                    fast(images)
                    gates = fast.last_gates
                macs.append(fast.macs(gates))
        self.macs = torch.cat(macs).double().mean().item()

    def __call__(self) -> tuple[Tensor, Tensor]:
        images, gates = next(self._next)
        return self.fast(images, forced_gates=gates)

    def check(self, model: nn.Module) -> None:
        """Compares some samples of the first input with the reference."""
        images, gates = self.inputs[0]
        part = slice(_SAMPLES_CHECKED)
        with torch.inference_mode():
            got = tuple(y[part] for y in self.fast(images, forced_gates=gates))
            forced = None if gates is None else {name: taken[part] for name, taken in gates.items()}
            error = relative_error(got, model(images[part], forced_gates=forced))
        if not error <= TOLERANCE:
            raise WrongAnswer(f"the accelerated network differs from the reference by {error:.1e}; nothing was timed")


def _noise(config: DualSkippingConfig, seed: int) -> Images:
    def images(batch: int, index: int) -> Tensor:
        shape = (batch, config.in_channels, config.image_size, config.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed + index))

    return images


def bench(
    model: nn.Module,
    name: str,
    settings: BenchSettings,
    *,
    images: Images | None = None,
    on_step: Callable[[str, float], None] = lambda text, fraction: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measures ``model`` and returns the document that ``dsn bench --json`` writes.

    Per batch size, everything is timed interleaved: the accelerated network under each gate setting and with all gates
    open, and each baseline. Every row holds, in milliseconds per batch and MACs per sample:

    - ``macs_saved`` = 1 - macs_executed / macs_open, ``latency_saved`` = 1 - ours_ms / ours_open_ms (medians), both
      against the same network with all gates open, and ``realised_fraction`` = latency_saved / macs_saved;
    - ``speedup_vs_best`` = median of the fastest baseline / median of ours;
    - ``gflops`` = 2 macs_executed x batch / median of ours.

    Args:
        model: a ``dsn_models.DualSkippingNetwork``.
        name: what the document calls it.
        settings: what to measure.
        images: (batch size, n) to the n-th batch of images [B, C, H, W]; normal noise if not given.
        on_step: told what is going on, and which part of it is done.
        on_row: told each finished row.

    Returns:
        The document. After Ctrl-C it holds the rows that could be formed, and ``"interrupted": true``.

    Raises:
        UserError: the model has no gates, or a setting does not fit it.
        WrongAnswer: the accelerated network differs from the reference.
    """
    if not isinstance(model, DualSkippingNetwork):
        raise UserError(f"{name} has no gates to measure; expected a dual skipping network")
    model = model.eval()
    fast: Any = dsn_kernels.accelerate(model, dtype=settings.dtype, backend=settings.backend)
    if not hasattr(fast, "macs"):
        raise UserError(f"backend {settings.backend!r} has no kernels to measure; expected auto or cpu")
    layers = {branch: getattr(model, branch).num_layers for branch in BRANCHES}
    for setting in settings.gates:
        setting.draw(model.config, layers, 1, torch.Generator())  # refuses before the long work
    document: dict[str, Any] = {
        "schema": 1,
        "model": name,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": machine.source_commit(),
        "machine": machine.describe(),
        "seed": settings.seed,
        "missing": {},
        "rows": [],
    }
    try:
        for batch in settings.batches:
            _bench_batch(model, fast, layers, batch, settings, images, document, on_step, on_row)
    except KeyboardInterrupt:
        document["interrupted"] = True
    return document


def _bench_batch(
    model: DualSkippingNetwork,
    fast: Any,
    layers: dict[str, int],
    batch: int,
    settings: BenchSettings,
    images: Images | None,
    document: dict[str, Any],
    on_step: Callable[[str, float], None],
    on_row: Callable[[dict[str, Any]], None],
) -> None:
    images = images or _noise(model.config, settings.seed)
    contestants: dict[str, _Contestant] = {}
    for setting in (GateSetting("open"), *settings.gates):
        # One seed for all: at a higher P more gates shut, and those of a lower P stay shut.
        generator = torch.Generator().manual_seed(settings.seed)
        count = max(1, _SAMPLES_DRAWN // batch) if setting.varies else 1
        inputs = [(images(batch, n), setting.draw(model.config, layers, batch, generator)) for n in range(count)]
        contestants[setting.text] = _Contestant(fast, inputs)
        contestants[setting.text].check(model)
    data = images(batch, 0)
    baselines, missing = build_all(
        settings.against,
        model.dense_equivalent(),
        data,
        lambda name: on_step(f"batch {batch}: building {name}", 0.0),
    )
    document["missing"].update({name: f"batch {batch}: {reason}" for name, reason in missing.items()})
    calls: dict[str, Callable[[], object]] = {f"ours {text}": c for text, c in contestants.items()}
    calls |= {name: (lambda call=call: call(data)) for name, call in baselines.items()}  # type: ignore[misc]
    timer = InterleavedTimer(calls, settings.seed)
    try:
        timer.run(settings.seconds, on_round=lambda done: on_step(f"batch {batch}: timing", done))
    finally:  # an interruption keeps what was measured
        latencies = timer.latencies()
        for setting in settings.gates:
            if f"ours {setting.text}" in latencies and "ours open" in latencies:
                row = _row(batch, setting.text, settings, latencies, contestants, baselines, int(fast.dense_macs))
                document["rows"].append(row)
                on_row(row)
        torch._dynamo.reset()  # compiled baselines of this shape; past a few shapes torch would run eager instead


def _row(
    batch: int,
    gates: str,
    settings: BenchSettings,
    latencies: dict[str, Latency],
    contestants: dict[str, _Contestant],
    baselines: dict[str, Any],
    macs_dense: int,
) -> dict[str, Any]:
    ours, opened = latencies[f"ours {gates}"], latencies["ours open"]
    others = {name: latencies[name] for name in baselines if name in latencies}
    best = min(others, key=lambda name: others[name].median) if others else None
    macs, macs_open = contestants[gates].macs, contestants["open"].macs
    macs_saved = 1 - macs / macs_open
    latency_saved = 1 - ours.median / opened.median
    return {
        "batch": batch,
        "gates": gates,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "backend": "cpu" if settings.backend == "auto" else settings.backend,
        "ours_ms": ours.as_dict(),
        "ours_open_ms": opened.as_dict(),
        "baselines_ms": {name: latency.as_dict() for name, latency in others.items()},
        "best_baseline": best,
        "speedup_vs_best": others[best].median / ours.median if best else None,
        "macs_dense": macs_dense,
        "macs_open": macs_open,
        "macs_executed": macs,
        "macs_saved": macs_saved,
        "latency_saved": latency_saved,
        "realised_fraction": latency_saved / macs_saved if macs_saved > 0 else None,
        "gflops": 2 * macs * batch / ours.median / 1e6,
    }
