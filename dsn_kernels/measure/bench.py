"""Latency and MACs of a network beside its dense network run six other ways, all in one interleaved run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import dsn_kernels
from dsn_models import UserError

from . import energy, machine
from .baselines import BASELINES, TOLERANCE, build_all, check_known, relative_error
from .gates import GateSetting
from .latency import InterleavedTimer
from .memory import OURS, peak_memory
from .networks import Gates, count_dense, dense_network, executed_macs, gate_counts, image_shape, run
from .rows import Timed

Images = Callable[[int, int], Tensor]

_LARGEST = 1_000_000
# A small batch, or one pattern for all of a batch, is no fair sample of the gates: it is drawn so many times.
DRAWS = 8
_SMALL_BATCH = 8
# The reference is slow; so many samples of a batch are compared with it.
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
        memory: measure peak memory too, each contestant in a process of its own.
    """

    batches: Sequence[int] = (1, 8, 64)
    gates: Sequence[GateSetting] = (GateSetting("open"),)
    against: Sequence[str] = tuple(BASELINES)
    dtype: torch.dtype = torch.float32
    backend: str = "auto"
    seed: int = 0
    seconds: float = 3.0
    memory: bool = False

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1 or max(self.batches) > _LARGEST:
            raise UserError(f"batch is {list(self.batches)}; expected numbers from 1 to {_LARGEST}, as 1,8,64")
        check_known(self.against)
        if not 0 <= self.seconds < math.inf:
            raise UserError(f"seconds is {self.seconds}; expected a number of at least 0")


class _Contestant:
    """The accelerated network under one gate setting, on each of ``inputs``."""

    def __init__(self, fast: Any, inputs: list[tuple[Tensor, Gates | None]]) -> None:
        self.fast, self.inputs = fast, inputs
        self.macs = torch.cat([executed_macs(fast, *one) for one in inputs]).double().mean().item()

    def calls(self) -> list[Callable[[], object]]:
        return [partial(run, self.fast, images, gates) for images, gates in self.inputs]

    def check(self, model: Any, dtype: torch.dtype) -> None:
        """Compares some samples of the first input with the reference: outputs, and the scores that decided on them."""
        images, gates = self.inputs[0]
        images = images[:_SAMPLES_CHECKED]
        taken = {} if gates is None else {name: rows[:_SAMPLES_CHECKED] for name, rows in gates.items()}
        with torch.inference_mode():
            got = run(self.fast, images, taken)
            # Where the network decides, a score within rounding of the threshold may fall on either side of it.
            decided = {name: rows.clone() for name, rows in getattr(self.fast, "last_gates", {}).items()}
            error = relative_error(got, run(model, images, decided))
            if decided and not taken:
                scores = tuple(self.fast.last_scores.values())
                run(model, images, decided)
                error = max(error, relative_error(scores, tuple(model.last_scores.values())))
        if not error <= TOLERANCE[dtype]:
            raise WrongAnswer(f"the accelerated network differs from the reference by {error:.1e}; nothing was timed")


def noise(config: Any, seed: int) -> Images:
    """Batches of normal noise of the shape of a network's images."""

    def images(batch: int, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + index)
        return torch.randn(batch, *image_shape(config), generator=generator)

    return images


def draws(setting: GateSetting, batch: int) -> int:
    """How many inputs a setting is measured on: :data:`DRAWS` for a small batch whose gates vary, else one."""
    return DRAWS if setting.varies and (setting.equal or batch <= _SMALL_BATCH) else 1


def bench(
    model: nn.Module,
    name: str,
    settings: BenchSettings,
    *,
    images: Images | None = None,
    baseline_model: nn.Module | None = None,
    on_step: Callable[[str, float], None] = lambda text, fraction: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measures ``model`` and returns the document that ``dsn bench --json`` writes.

    Per batch size, everything is timed interleaved: the accelerated network under each gate setting and with all gates
    open, and each baseline. Gates that vary are measured on eight draws of gates and images where the batch is small or
    shares one pattern; each draw is timed as often as the others, times are the means of the draws' medians and
    percentiles, MACs those of all draws. Every row holds, in milliseconds per batch and MACs per sample:

    - ``macs_saved`` = 1 - macs_executed / macs_open, ``latency_saved`` = 1 - ours_ms / ours_open_ms (medians), both
      against the same network with all gates open, and ``realised_fraction`` = latency_saved / macs_saved;
    - ``speedup_vs_best`` = median of the fastest baseline / median of ours; ``open_speedup``, of it / all gates open;
    - ``gflops`` = 2 macs_executed x batch / median of ours;
    - ``noise``, :meth:`~dsn_kernels.measure.noise.Noise.spread` of ours; ``speedup_interval`` and
      ``latency_saved_interval``, 95 %; ``speedup_called`` and ``latency_saved_called``, whether noise does not explain
      the difference (:attr:`~dsn_kernels.measure.noise.Ratio.called`);
    - ``energy_mj``, millijoules per sample, and ``baselines_energy_mj``; null where nothing counts them;
    - with ``settings.memory``, ``peak_memory_mib`` of ours with all gates open and of each baseline, by
      :func:`~dsn_kernels.measure.memory.peak_memory`.

    Args:
        model: of a family that ``dsn_kernels.accelerate`` serves.
        name: what the document calls it.
        settings: what to measure.
        images: (batch size, n) to the n-th batch of images [B, C, H, W]; normal noise if not given.
        baseline_model: the network that is run as baseline, for images of the same shape; ``model`` if not given.
        on_step: told what is going on, and which part of it is done.
        on_row: told each finished row.

    Returns:
        The document. After Ctrl-C it holds the rows that could be formed, and ``"interrupted": true``.

    Raises:
        UserError: nothing in the model can be accelerated, or a setting does not fit it.
        WrongAnswer: the accelerated network differs from the reference.
    """
    if settings.backend == "reference":
        raise UserError("backend 'reference' has no kernels to measure; expected auto or cpu")
    model = model.eval()
    dense = dense_network(baseline_model or model).eval()
    config: Any = model.config
    if baseline_model is not None and image_shape(baseline_model.config) != image_shape(config):
        given, wanted = list(image_shape(baseline_model.config)), list(image_shape(config))
        raise UserError(f"the baseline takes images {given}; {name} takes {wanted}")
    for setting in settings.gates:
        setting.draw(config, gate_counts(model), 1, torch.Generator())  # refuses before the long work
    fast: Any = dsn_kernels.accelerate(model, dtype=settings.dtype, backend=settings.backend)
    meter, metered = energy.find()
    document: dict[str, Any] = {
        "schema": 1,
        "model": name,
        "baseline_model": name if baseline_model is None else getattr(baseline_model.config, "name", "baseline"),
        "macs_dense": count_dense(model),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "affinity": machine.affinity(),
        **machine.facts(),
        "energy": metered,
        "seed": settings.seed,
        "missing": {},
        "rows": [],
    }
    try:
        for batch in settings.batches:
            _bench_batch(model, fast, dense, batch, settings, images, meter, document, on_step, on_row)
    except KeyboardInterrupt:
        document["interrupted"] = True
    return document


def _bench_batch(
    model: Any,
    fast: Any,
    dense: nn.Module,
    batch: int,
    settings: BenchSettings,
    images: Images | None,
    meter: energy.EnergyMeter | None,
    document: dict[str, Any],
    on_step: Callable[[str, float], None],
    on_row: Callable[[dict[str, Any]], None],
) -> None:
    images = images or noise(model.config, settings.seed)
    counts = gate_counts(model)
    contestants: dict[str, _Contestant] = {}
    for setting in (GateSetting("open"), *settings.gates):
        # One seed for all: at a higher P more gates shut, and those of a lower P stay shut.
        generator = torch.Generator().manual_seed(settings.seed)
        inputs = [
            (images(batch, n), setting.draw(model.config, counts, batch, generator))
            for n in range(draws(setting, batch))
        ]
        contestants[setting.text] = _Contestant(fast, inputs)
        contestants[setting.text].check(model, settings.dtype)
    data = images(batch, 0)
    baselines, missing = build_all(
        settings.against,
        dense,
        data,
        lambda name: on_step(f"batch {batch}: building {name}", 0.0),
        settings.dtype,
    )
    document["missing"].update({name: f"batch {batch}: {reason}" for name, reason in missing.items()})
    calls = {f"ours {text}": contestant.calls() for text, contestant in contestants.items()}
    calls |= {name: [partial(call, data)] for name, call in baselines.items()}
    memory = {}
    if settings.memory:
        for name, network in {OURS: model, **dict.fromkeys(baselines, dense)}.items():
            on_step(f"batch {batch}: memory of {name}", 0.0)
            memory[name] = peak_memory(name, network, data)
    timer = InterleavedTimer(calls, settings.seed, energy=meter)
    try:
        timer.run(settings.seconds, on_round=lambda done: on_step(f"batch {batch}: timing", done))
    finally:  # an interruption keeps what was measured
        timed = Timed(timer, settings.seed)
        macs = {text: contestant.macs for text, contestant in contestants.items()}
        for setting in settings.gates:
            if f"ours {setting.text}" in timed.latencies and "ours open" in timed.latencies:
                facts = {
                    "batch": batch,
                    "gates": setting.text,
                    "draws": len(contestants[setting.text].inputs),
                    "dtype": str(settings.dtype).removeprefix("torch."),
                    "backend": "cpu" if settings.backend == "auto" else settings.backend,
                }
                row = timed.row(facts, macs, document["macs_dense"])
                if settings.memory:
                    row["peak_memory_mib"] = {name: found.get("mib") for name, found in memory.items()}
                document["rows"].append(row)
                on_row(row)
        for name, found in memory.items():
            if "not_available" in found:
                document["missing"][f"memory of {name}"] = f"batch {batch}: {found['not_available']}"
        torch._dynamo.reset()  # compiled baselines of this shape; past a few shapes torch would run eager instead
