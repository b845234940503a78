"""``dsn bench``: latency and MACs beside the dense network run in other ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import dsn_kernels
from dsn_models import UserError
from dsn_models.checkpoints import write_atomically

from ..measure import machine
from ..measure.baselines import BASELINES
from ..measure.bench import BenchSettings, Images, noise
from ..measure.bench import bench as measure
from ..measure.gates import GateSetting
from ..measure.networks import gate_counts
from ..measure.records import record
from ..measure.serving import Load, under_load
from ..report.headlines import Accuracy, Timing, gates_line, kernels_line, started_from
from ..report.plots import check_picture, load_figure, picture
from .common import (
    BATCH,
    SEEDS,
    ArchOption,
    JsonOption,
    KindOption,
    PinOption,
    SecondsOption,
    ThreadsOption,
    check_writable,
    columned,
    console,
    mega,
    millis,
    parse_options,
    percent,
    progress_bar,
    set_threads,
    split,
    steps_shown,
    write_json,
)
from .inputs import load_model, read_test_data, test_images
from .tune import tune_backends

_IMAGES_SERVED = 64  # requests cycle through so many images
_IMAGES_CLASSIFIED = 1000  # for the accuracy


def _integers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in split(text)]
    except ValueError:
        raise UserError(f"{option} is {text!r}; expected numbers separated by commas, such as 1,8,64") from None


def _dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text, None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"dtype is {text!r}; expected float32 or bfloat16")
    return dtype


_NOT_CALLED = "="
_EXTRA: dict[str, tuple[str, Callable[[Any], str]]] = {
    "peak_memory_mib": ("MiB", lambda mib: "-" if mib["ours"] is None else f"{mib['ours']:.0f}"),
    "energy_mj": ("mJ a sample", millis),
}


def speedup(row: dict[str, Any]) -> str:
    """How many times faster than the best baseline; where noise explains the difference, between what it may lie."""
    if row["speedup_called"]:
        return f"{row['speedup_vs_best']:.2f}x"
    low, high = row["speedup_interval"]
    return f"{_NOT_CALLED} ({low:.2f}-{high:.2f})"


def _caption(rows: Sequence[dict[str, Any]]) -> str | None:
    called = [row[key] for row in rows for key in ("speedup_called", "latency_saved_called")]
    return None if all(called) else f"{_NOT_CALLED}: no difference that noise does not explain"


def tables(document: dict[str, Any]) -> list[Table]:
    """The document's rows for people: the network under its gates, then the dense network run in other ways."""
    title = f"{document['model']} on {document['machine']['cpu']}, {document['threads']} threads: median ms per batch"
    extra = [name for name in _EXTRA if any(row.get(name) is not None for row in document["rows"])]
    columns = ["batch", "gates", "ours", "noise", "all open", "best dense", "speed-up", "MACs", "saved"]
    columns += ["latency saved", "realised", *(_EXTRA[name][0] for name in extra)]
    ours = columned(title, columns, caption=_caption(document["rows"]))
    dense: dict[int, dict[str, dict[str, float]]] = {}
    for row in document["rows"]:
        dense[row["batch"]] = row["baselines_ms"]
        best = row["best_baseline"]
        ours.add_row(
            str(row["batch"]),
            row["gates"],
            millis(row["ours_ms"]["median"]),
            "-" if row["noise"] is None else percent(row["noise"]),
            millis(row["ours_open_ms"]["median"]),
            "-" if best is None else f"{millis(row['baselines_ms'][best]['median'])} {best}",
            "-" if best is None else speedup(row),
            mega(row["macs_executed"]),
            percent(row["macs_saved"]),
            percent(row["latency_saved"]) if row["latency_saved_called"] else _NOT_CALLED,
            f"{row['realised_fraction']:.2f}" if row["realised_fraction"] and row["latency_saved_called"] else "-",
            *(_EXTRA[name][1](row[name]) for name in extra),
        )
    if not any(dense.values()):
        return [ours]
    names = [name for name in BASELINES if any(name in entries for entries in dense.values())]
    others = columned(f"{document['baseline_model']} without gates: median ms per batch", ("batch", *names))
    for batch, entries in dense.items():
        cells = (millis(entries[name]["median"]) if name in entries else "-" for name in names)
        others.add_row(str(batch), *cells)
    return [ours, others]


def headlines(document: dict[str, Any], accuracy: Accuracy | None) -> list[str]:
    """What the last of the gates that are not all open save, and what the kernels gain with all of them open."""
    if not document["rows"]:
        return []
    gates = [row["gates"] for row in document["rows"] if row["gates"] != "open"]
    chosen = [row for row in document["rows"] if row["gates"] == (gates[-1] if gates else "open")]
    rows = [
        Timing(
            row["batch"],
            *(row["latency_saved"], row["latency_saved_called"]),
            *(row["best_baseline"], row["open_speedup"], row["open_speedup_called"]),
        )
        for row in chosen
    ]
    tried = [name for name in BASELINES if any(name in row["baselines_ms"] for row in chosen)]
    macs_saved = sum(row["macs_saved"] for row in chosen) / len(chosen)
    told = gates_line(rows, macs_saved, accuracy, gates[-1]) if gates else ""
    return [line for line in (told, kernels_line(rows, tried)) if line]


def _accuracy(network: Any, metadata: dict[str, Any], kind: str | None, data: Path | None) -> Accuracy:
    """On some of the test images, under the network's own gates and all of them open."""
    test = read_test_data(network, metadata, kind, data, None, _IMAGES_CLASSIFIED)
    fast = dsn_kernels.accelerate(network)
    own, opened = (
        {task: kept.correct(task).double().mean().item() for task in kept.labels}
        for kept in (record(fast, test), record(fast, test, all_open=True))
    )
    return Accuracy(own, opened, started_from(metadata), len(test.images))


def load_table(document: dict[str, Any]) -> Table:
    """Latency percentiles of each network at each load."""
    title = f"{document['model']} under load, batches of up to {document['max_batch']}: ms to the answer"
    within = f"within {document['slo_ms']:g} ms"
    table = columned(title, ("requests/s", "network", "median", "p90", "p99", within, "mean batch"), ("network",))
    for row in document["rows"]:
        times = (millis(row[key]) for key in ("p50", "p90", "p99"))
        table.add_row(f"{row['rate']:g}", row["network"], *times, percent(row["in_time"]), f"{row['mean_batch']:.1f}")
    return table


def _under_load(
    network: Any,
    name: str,
    load: Load,
    settings: BenchSettings,
    images: Images | None,
    plot: Path | None,
    json: str | None,
) -> None:
    count = _IMAGES_SERVED
    data = (images or noise(network.config, settings.seed))(count, 0)
    generator = torch.Generator().manual_seed(settings.seed)
    gates = settings.gates[-1].draw(network.config, gate_counts(network), count, generator)
    with steps_shown() as show:
        document = under_load(
            network,
            name,
            data,
            load,
            max_batch=max(settings.batches),
            seconds=settings.seconds,
            seed=settings.seed,
            gates=gates,
            on_step=show,
        )
    document = {"schema": 1, **document, "gates": settings.gates[-1].text, **machine.facts()}
    if plot is not None:
        write_atomically(plot, picture(partial(load_figure, document), plot.suffix.removeprefix(".")))
    if json is not None:
        write_json(document, json)
        return
    console().print(load_table(document))
    for label, rate in document["largest_rate"].items():
        told = "no load tried" if rate is None else f"up to {rate:g} requests/s"
        console().print(f"{label}: 99 % within {load.slo_ms:g} ms at {told}")


def bench(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME|CKPT", help="A zoo name (random weights) or a checkpoint.", show_default=False),
    ] = "",
    arch: ArchOption = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="cpu; with --tune a GPU.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(metavar="float32|bfloat16", help="Of the kernels and the dense baselines.")
    ] = "float32",
    batch: Annotated[
        str, typer.Option("--batch", "-b", metavar="N,N", help=f"{BATCH[:-1]}; several with commas.")
    ] = "1,8,64",
    gates: Annotated[
        str,
        typer.Option(
            metavar="GATES",
            help="open, shut, trained, paper, random:P (every gate shut with probability P), "
            "equal:P (the same for all samples of a batch); several. Of a checkpoint open,trained if not given.",
        ),
    ] = "",
    against: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Dense baselines; an empty string for none.")
    ] = ",".join(BASELINES),
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of a zoo model's configuration; may be repeated.")
    ] = None,
    baseline_model: Annotated[
        str | None, typer.Option(metavar="NAME|CKPT", help="Run as the dense baseline; MODEL's own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS, help="Of weights, images and random gates.")] = 0,
    seconds: SecondsOption = 3.0,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", metavar="DIR", help="Folder that holds the data; noise if not given.")
    ] = None,
    kind: KindOption = None,
    load: Annotated[
        str | None, typer.Option(metavar="qps=N,slo=MS", help="Instead: latency under random arrivals, by load.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="With --load: the curves, as .svg, .png or .pdf.")] = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Say why energy was not measured, where it was not.")
    ] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Peak memory too, each network in a new process.")] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Instead: time every backend of a GPU, for the choice that is then automatic."),
    ] = False,
    threads: ThreadsOption = None,
    pin: PinOption = None,
    json: JsonOption = None,
) -> None:
    """Latency and MACs beside eager, compiled and exported dense baselines, timed in turns in one run.

    With --load, the dense network and ours serve the same Poisson arrivals, batched as they come up to the largest
    --batch; the last of --gates is what skipping means.
    """
    check_writable(json, weights=False)
    check_writable(plot)
    if tune:
        tune_backends(device, _dtype(dtype), seconds, json)
        return
    if not model:
        raise UserError("bench needs NAME|CKPT, a zoo name or a checkpoint, or --tune")
    wanted = None if load is None else Load(load)
    if plot is not None:
        if wanted is None:
            raise UserError("--plot is of the curves of --load; expected --load with it")
        check_picture(plot.suffix.removeprefix("."))
    set_threads(threads, pin)
    if device != "cpu":
        raise UserError(f"device is {device!r}; expected cpu, the one that this build has kernels for")
    options = parse_options(option or [])
    network, metadata = load_model(model, seed, options, arch)
    if not Path(model).exists() and "trained" in split(gates):
        raise UserError(f"gates trained: {model} has random weights; expected a checkpoint")
    other = None if baseline_model is None else load_model(baseline_model, seed, arch=arch)[0]
    own = "trained" if Path(model).exists() else "random:0.5"
    chosen = split(gates) or (["open", own] if gate_counts(network) else ["open"])
    settings = BenchSettings(
        batches=list(dict.fromkeys(_integers(batch, "batch"))),
        gates=[GateSetting(text) for text in dict.fromkeys(chosen)],
        against=list(dict.fromkeys(split(against))),
        dtype=_dtype(dtype),
        seed=seed,
        seconds=seconds,
        memory=memory,
    )
    images = test_images(network, metadata, kind, data)
    accuracy = None
    if "trained" in chosen and images is None:
        told = "note: no --data, so images are noise, and what trained gates do to noise is not what they do to images"
        console(stderr=True).print(told, soft_wrap=True)
    elif chosen[-1] == "trained" and wanted is None:
        accuracy = _accuracy(network, metadata, kind, data)
    if wanted is not None:
        _under_load(network, model, wanted, settings, images, plot, json)
        return
    with progress_bar() as progress:
        task = progress.add_task("", total=1.0)

        def show_row(row: dict[str, Any]) -> None:
            line = f"batch {row['batch']}, gates {row['gates']}: {millis(row['ours_ms']['median'])} ms"
            if row["best_baseline"]:
                line += f", {speedup(row)} beside {row['best_baseline']}"
            progress.console.print(line)

        document = measure(
            network,
            model,
            settings,
            images=images,
            baseline_model=other,
            on_step=lambda text, done: progress.update(task, description=text, completed=done, refresh=True),
            on_row=show_row,
        )
    if options:
        document["options"] = options
    if accuracy is not None:
        document["accuracy"] = accuracy._asdict()
    document["headlines"] = headlines(document, accuracy)
    if json is not None:
        write_json(document, json)
    else:
        for line in document["headlines"]:
            console().print(line, soft_wrap=True)
        for table in tables(document):
            console().print(table)
    missing = dict(document["missing"])
    if energy and "not_available" in document["energy"]:
        missing["energy"] = document["energy"]["not_available"]
    for name, reason in missing.items():
        console(stderr=True).print(f"missing: {name}: {reason}", soft_wrap=True)
    if document.get("interrupted"):
        raise KeyboardInterrupt
