"""What benchmarks/gpu.sh runs on a GPU: every result goes into one JSON file at once.

python benchmarks/gpu.py --out gpu.json environment | once | note NAME TEXT | measure --seconds S
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_bars import FAMILIES, Family
from torch import Tensor, nn

import dsn_kernels
import dsn_models
from dsn_kernels.measure import Latency, machine
from dsn_kernels.measure.gates import GateSetting
from dsn_kernels.measure.host_waits import observe
from dsn_kernels.measure.networks import gate_counts
from dsn_kernels.measure.rows import bench_row
from dsn_models.errors import UserError

MODEL = "concat-bc-100"
DTYPE = torch.float16
DTYPE_NAME = str(DTYPE).removeprefix("torch.")
BATCHES = (1, 8, 64, 256, 1024)
SETTINGS = ("open", "shut", "paper", "random:0.3", "random:0.5", "random:0.7", "equal:0.5")
TURN_MS = 30.0  # of one contestant before the next has its turn
ROUNDS = 7


class Document:
    """The JSON file; every change is written at once, beside and then renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def set(self, **values: Any) -> None:
        self.content.update(values)
        if self.path.is_file() or not self.path.exists():
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(self.content, indent=2) + "\n")
            beside.replace(self.path)


def make_model(name: str = MODEL, **options: Any) -> Any:
    """Random weights whose batch norms have seen data: the time of a layer does not depend on its weights."""
    torch.manual_seed(0)
    model = dsn_models.create(name, **options)
    model.train()
    with torch.no_grad():
        model(images(4, model.config).cpu())
    return model.eval().requires_grad_(False)


def images(batch: int, config: Any = None) -> Tensor:
    side = config.image_size if config else 32
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1)).cuda()


def draw(setting: str, model: Any, batch: int) -> dict[str, Tensor]:
    """Gates to force; none of a network that has none."""
    generator = torch.Generator().manual_seed(0)
    gates = GateSetting(setting).draw(model.config, gate_counts(model), batch, generator) or {}
    return {name: taken.cuda() for name, taken in gates.items()}


def graphed(call: Callable[[], object]) -> Callable[[], None]:
    """One CUDA graph of a call whose tensors stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def interleave(calls: dict[str, Callable[[], object]], deadline: float) -> dict[str, Latency]:
    """Milliseconds per call by CUDA events, the contestants in turns.

    Replays of graphs follow one another, ours and the baselines' alike, and find in the second-level cache what the
    replay before has left, as they do where a model is served. Any other call finds it flushed.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    counts: dict[str, int] = {}
    flush = torch.empty(2 * torch.cuda.get_device_properties(0).L2_cache_size, dtype=torch.uint8, device="cuda")
    flushes = {name: None if is_replay(call) else flush for name, call in calls.items()}
    for name, call in calls.items():
        call()
        counts[name] = max(1, int(TURN_MS / max(_elapsed(call, 3, flushes[name]), 1e-3)))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            samples[name].append(_elapsed(call, counts[name], flushes[name]) / 1e3)
        if time.monotonic() > deadline:
            break
    return {name: Latency.of(values) for name, values in samples.items()}


def is_replay(call: Callable[[], object]) -> bool:
    """Whether a call is what :func:`graphed` gave."""
    return isinstance(getattr(call, "__self__", None), torch.cuda.CUDAGraph)


def _elapsed(call: Callable[[], object], count: int, flush: Tensor | None) -> float:
    """Mean milliseconds; of calls one behind the other, or of each by itself behind a write to all of ``flush``."""
    at_once = count if flush is None else 1
    total = 0.0
    for _ in range(count // at_once):
        if flush is not None:
            flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(at_once):
            call()
        end.record()
        end.synchronize()
        total += begin.elapsed_time(end)
    return total / count


def _dense(model: Any) -> nn.Module:
    return copy.deepcopy(getattr(model, "dense_equivalent", lambda: model)()).cuda().to(DTYPE)


def baselines(model: Any, x: Tensor) -> dict[str, Callable[[], object]]:
    dense = _dense(model)
    last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
    half, half_last = x.to(DTYPE), x.to(DTYPE).to(memory_format=torch.channels_last)
    return {
        "eager": lambda: dense(half),
        "channels_last": lambda: last(half_last),
        "channels_last graph": graphed(lambda: last(half_last)),
    }


def compiled(model: Any, x: Tensor, mode: str) -> Callable[[], object]:
    dense = _dense(model).to(memory_format=torch.channels_last)
    call = torch.compile(dense, dynamic=False, mode=mode)
    inputs = x.to(DTYPE).to(memory_format=torch.channels_last)
    for _ in range(3):
        call(inputs)
    return lambda: call(inputs)


def tensorrt(model: Any, x: Tensor) -> Callable[[], object]:
    import torch_tensorrt  # type: ignore[import-not-found]

    dense = _dense(model)
    inputs = x.to(DTYPE)
    call = torch_tensorrt.compile(dense, inputs=[inputs], enabled_precisions={DTYPE})
    return graphed(lambda: call(inputs))


def row(batch: int, setting: str, fast: Any, gates: dict[str, Tensor], times: dict[str, Latency]) -> dict[str, Any]:
    """As ``dsn bench`` writes it."""
    facts = {
        "batch": batch,
        "gates": setting,
        "draws": 1,
        "dtype": DTYPE_NAME,
        "backend": "cuda",
    }
    others = {name: t for name, t in times.items() if not name.startswith("ours ")}
    everything = {name: torch.ones_like(taken.cpu()) for name, taken in gates.items()}
    macs, macs_open = (
        fast.macs({name: taken.cpu() for name, taken in which.items()}).double().mean().item()
        for which in (gates, everything)
    )
    return bench_row(facts, times[f"ours {setting}"], times["ours open"], others, macs, macs_open, fast.dense_macs)


def _observed(call: Callable[[Tensor], object], x: Tensor) -> list[str] | str:
    """What makes the host wait in a call; a sentence if the profiler could not see it."""
    try:
        return observe(lambda: call(x))
    except ValueError as error:
        return f"not observed: {error}"


def beside_triton(model: Any, cuda: Any, deadline: float) -> list[dict[str, Any]] | str:
    """The Triton and the CUDA kernels in turns, graphs of both, for each batch size and kind of gates; a sentence if
    Triton cannot run here."""
    try:
        triton = dsn_kernels.accelerate(model, dtype=DTYPE, backend="triton")
        _check(model, triton)
    except (UserError, RuntimeError, SystemExit) as error:
        return str(error).splitlines()[0]
    rows = []
    for batch in BATCHES:
        x = images(batch)
        for setting in SETTINGS:
            if time.monotonic() > deadline - 20:
                return rows
            gates = draw(setting, model, batch)
            both = {"cuda": cuda, "triton": triton}
            calls = {name: graphed(lambda n=n, g=gates, x=x: n(x, forced_gates=g)) for name, n in both.items()}
            times = {f"{name}_ms": latency.as_dict() for name, latency in interleave(calls, deadline).items()}
            rows.append({"batch": batch, "gates": setting, **times})
    return rows


def measure(document: Document, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    model = make_model()
    eager = dsn_kernels.accelerate(model, dtype=DTYPE, backend="cuda")
    fast = dsn_kernels.accelerate(model, dtype=DTYPE, backend="cuda", graph=BATCHES)
    _check(model, fast)
    waiting = images(8)
    document.set(
        model=MODEL,
        baseline_model=MODEL,
        macs_dense=eager.dense_macs,
        threads=torch.get_num_threads(),
        dtype=DTYPE_NAME,
        seed=0,
        l2_cache="flushed before each call that is no graph replay; replays follow one another",
        host_synchronisations={name: _observed(call, waiting) for name, call in (("launches", eager), ("graph", fast))},
    )
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for batch in BATCHES:
        x = images(batch)
        chosen = {setting: draw(setting, model, batch) for setting in SETTINGS}
        # The graph alone, as the baselines' graphs: copies into its inputs are outside of both.
        calls: dict[str, Callable[[], object]] = {
            f"ours {setting}": graphed(lambda g=gates, x=x: eager(x, forced_gates=g))
            for setting, gates in chosen.items()
        }
        calls |= baselines(model, x)
        times = interleave(calls, deadline)
        rows += [row(batch, setting, eager, gates, times) for setting, gates in chosen.items()]
        document.set(rows=rows, missing=missing)
        print(f"batch {batch}: " + ", ".join(f"{n} {t.median:.3f} ms" for n, t in times.items()), flush=True)
    # Of what is left half is for the families, then Triton; compilers take the rest.
    families(document, time.monotonic() + (deadline - time.monotonic()) / 2)
    document.set(triton=beside_triton(model, eager, deadline))
    modes: tuple[tuple[str, Callable[[Any, Tensor], Callable[[], object]]], ...] = (
        ("compile max-autotune", lambda m, x: compiled(m, x, "max-autotune")),
        ("compile reduce-overhead", lambda m, x: compiled(m, x, "reduce-overhead")),
        ("tensorrt", tensorrt),
    )
    for name, make in reversed(modes):  # the longest to build last
        for batch in BATCHES:
            if time.monotonic() > deadline - 20:
                missing[f"{name}, batch {batch}"] = "no time left"
                continue
            try:
                x = images(batch)
                gates = draw("open", model, batch)
                ours = graphed(lambda g=gates, x=x: eager(x, forced_gates=g))
                times = interleave({"ours open": ours, name: make(model, x)}, deadline)
            except Exception as error:  # a baseline that fails is reported, not fatal
                missing[f"{name}, batch {batch}"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            else:
                _join(rows, batch, name, times[name])
            document.set(rows=rows, missing=missing)
            torch._dynamo.reset()


def families(document: Document, deadline: float) -> None:
    """Each family: our kernels as graphs beside dense runs of the same network, or of what it is held against."""
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for family in FAMILIES:
        try:
            _family(family, rows, missing, deadline)
        except Exception as error:  # one that fails is reported, the others are measured
            missing[family.name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        document.set(families=rows, families_missing=missing)


def _family(family: Family, rows: list[dict[str, Any]], missing: dict[str, str], deadline: float) -> None:
    model = make_model(family.name, **family.options)
    dense = make_model(family.against) if family.against else model
    fast = dsn_kernels.accelerate(model, dtype=DTYPE, backend="cuda")
    _check(model, fast, 1)
    for batch in family.batches:
        if time.monotonic() > deadline:
            missing[f"{family.name}, batch {batch}"] = "no time left"
            continue
        x = images(batch, model.config)
        chosen = {setting: draw(setting, model, batch) for setting in family.settings}
        calls: dict[str, Callable[[], object]] = {
            f"ours {setting}": graphed(lambda g=gates, x=x: fast(x, forced_gates=g))
            for setting, gates in chosen.items()
        }
        calls |= baselines(dense, x)
        if family.against:
            own, half = copy.deepcopy(model).cuda().to(DTYPE), x.to(DTYPE)
            calls |= {f"eager {family.name}": lambda own=own, half=half: own(half)}
        try:  # a minute at most: the mode that tunes nothing
            calls |= {"compile default graph": graphed(compiled(dense, x, "default"))}
        except Exception as error:
            missing[f"{family.name}, batch {batch}, compile"] = f"{type(error).__name__}: {str(error)[:200]}"
        times = interleave(calls, deadline)
        rows += [
            {"model": family.name, **family.options, **row(batch, setting, fast, gates, times)}
            for setting, gates in chosen.items()
        ]
        print(
            f"{family.name}, batch {batch}: " + ", ".join(f"{n} {t.median:.3f} ms" for n, t in times.items()),
            flush=True,
        )
        torch._dynamo.reset()


def _join(rows: list[dict[str, Any]], batch: int, name: str, latency: Latency) -> None:
    for entry in rows:
        if entry["batch"] == batch:
            entry["baselines_ms"][name] = latency.as_dict()
            best = min(entry["baselines_ms"], key=lambda n: entry["baselines_ms"][n]["median"])
            entry["best_baseline"] = best
            entry["speedup_vs_best"] = entry["baselines_ms"][best]["median"] / entry["ours_ms"]["median"]


def _logits(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return (out if isinstance(out, Tensor) else torch.cat(out, 1)).cpu().double()


def _check(model: Any, fast: Any, batch: int = 4) -> None:
    """Nothing wrong is timed: against the float64 reference, as exact as float16 PyTorch within a factor of two."""
    x = images(batch, model.config)
    got = _logits(fast(x))
    gates = {name: taken.cpu() for name, taken in fast.last_gates.items()}
    forced = {"forced_gates": gates} if gates else {}
    exact = _logits(copy.deepcopy(model).double()(x.cpu().double(), **forced))
    moved = {"forced_gates": {n: g.cuda() for n, g in gates.items()}} if gates else {}
    same = _logits(copy.deepcopy(model).cuda().to(DTYPE)(x.to(DTYPE), **moved))
    ours, theirs = (got - exact).abs().max().item(), (same - exact).abs().max().item()
    if not ours <= 2 * theirs:
        sys.exit(f"wrong answer: error {ours:.2e}, of float16 PyTorch {theirs:.2e}; nothing was timed")


def once() -> None:
    """A few calls for compute-sanitizer: every kernel, a mixed batch, more samples than a gate word holds."""
    dense = {"block_layers": (2, 2, 2), "image_size": 16}
    units = {"stage_units": (1, 2), "stage_widths": (8, 16), "stem_width": 8}
    gater = {"gater_options": {**units, "stem": "conv3x3"}, "gated": "all", "image_size": 16}
    for name, options in (
        ("concat-bc-100", dense),
        ("concat-40", dense),
        ("add-166", {**dense, "growth_rate": 4, "stage_widths": (8, 16, 32)}),
        ("lsn-concat-bc-100", dense),
        ("skipnet-38-rnn", {**units, "image_size": 16}),
        ("gunn-15", {"widths": (24, 36), "segments": (2, 3), "image_size": 8}),
        ("gaternet-densenet-100-12", {**gater, "backbone_options": {"block_layers": (2, 2)}}),
        ("gaternet-shake-shake-64d", {**gater, "backbone_options": {"stage_units": (1, 1), "width": 8}}),
        ("lenet", {}),
    ):
        torch.manual_seed(0)
        model = dsn_models.create(name, **options).eval()
        fast = dsn_kernels.accelerate(model, dtype=DTYPE, device="cuda")
        for batch in (3, 70):
            side = model.config.image_size
            x = torch.randn(batch, model.config.in_channels, side, side).cuda()
            fast(x, forced_gates=draw("random:0.5", model, batch) if fast.layers else {})
    torch.cuda.synchronize()


def environment() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "schema": 1,
        "device": "cuda",
        "torch": torch.__version__,
        "commit": machine.source_commit(),
        "machine": machine.describe() | {"gpu": properties.name},
        "environment": {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": list(torch.cuda.get_device_capability()),
            "cuda_of_torch": torch.version.cuda,
            "python": platform.python_version(),
            "build": dsn_kernels._C.build_info(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("environment")
    commands.add_parser("once")
    note = commands.add_parser("note")
    note.add_argument("name")
    note.add_argument("text")
    commands.add_parser("measure").add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    document = Document(arguments.out)
    if arguments.command == "note":
        document.set(notes={**document.content.get("notes", {}), arguments.name: arguments.text})
        return
    if not torch.cuda.is_available():
        sys.exit(f"no GPU that torch {torch.__version__} can use; run this on a machine with one")
    with torch.inference_mode():
        if arguments.command == "environment":
            document.set(**environment())
        elif arguments.command == "once":
            once()
        else:
            measure(document, arguments.seconds)


if __name__ == "__main__":
    main()
