"""``dsn gate``: a trained network of the user's to one that skips, within a budget of MACs."""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.table import Table

import dsn_kernels
from dsn_models import UserError, checkpoints
from dsn_models.computation import GateMacs, read_gate_costs
from dsn_models.constructors import ZOO, fitted, gate_constructed
from dsn_models.convert import Normalisation
from dsn_models.data import SIZED, CoarseFineDataset, told_kind
from dsn_models.distributed import is_first

from ..measure import machine
from ..measure.gate_costs import gate_costs
from .common import (
    BATCH,
    MANY,
    SEEDS,
    JsonOption,
    KindOption,
    ThreadsOption,
    check_writable,
    columned,
    console,
    finite,
    parse_options,
    percent,
    set_threads,
    split,
    write_json,
)
from .convert import given_normalisation
from .given import Given, given_network

if TYPE_CHECKING:
    from dsn_models.training.recipe import Recipe

_TARGET = re.compile(r"(macs|latency)=(\d*\.?\d+)\s*(%?)")
_OTHER = (".pth", ".pt", ".th", ".ckpt", ".bin", ".tar", ".pkl")  # of other programs' weights
_MISSED = 0.02  # above a target is a miss
_BELOW = 0.1  # below it is more than was asked for
_TIMED = 8  # images that gates are timed on
_COST = 80.0  # weight of the squared excess of MACs; so large that a hundredth too many is felt


def _share(target: str) -> tuple[str, float]:
    """The word and the number in ``macs=0.6``.

    Raises:
        UserError: it is another word or no number in (0, 1].
    """
    match = _TARGET.fullmatch(target.strip())
    share = float(match[2]) / (100 if match[3] else 1) if match else 0.0
    if match is None or not 0 < share <= 1:
        raise UserError(
            f"target is {target!r}; expected macs=S or latency=S with S in (0, 1], a share of the MACs or of the time, "
            "such as macs=0.6 or macs=60%"
        )
    return match[1], share


def _costs(gated: Any, images: torch.Tensor, file: Path | None, measured: bool) -> GateMacs:
    """What the gates decide on: MACs or, if there is a file for them, milliseconds, which it holds if ``measured``."""
    if file is None:
        return gated.gate_macs
    if not measured and is_first():
        fast = dsn_kernels.accelerate(gated.eval(), example=images[:1])
        write_json({**gate_costs(gated, fast, images), **machine.facts()}, str(file))
    return read_gate_costs(file, gated.gate_counts)


def _data_options(
    kind: str, given: Given, image_size: int | None, normalisation: Normalisation | None
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if normalisation is not None:
        options |= {"mean": [*normalisation.mean], "std": [*normalisation.std]}
    if kind in SIZED:
        options["image_size"] = image_size or given.image_size or 224
    elif image_size is not None:
        raise UserError(f"--image-size is for images in files; {kind} data has a size of its own, leave it out")
    return options


def _recipe(**content: Any) -> Recipe:
    from pydantic import ValidationError

    from dsn_models.training.recipe import Recipe  # here, because --help needs no recipe and no pydantic

    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{what} is {first['input']!r}: {first['msg']}") from error


def _results(facts: dict[str, Any], task: str) -> Table:
    """The network as it was given, where it knew the classes, and as it skips."""
    test = facts["test"]
    table = columned(f"{test['images']} test images", ("network", "accuracy", "units skipped", "MACs"), ("network",))
    if "given" in test:
        table.add_row("as it was given", percent(test["given"][task]["accuracy"]), "-", percent(1))
    found = test[task]
    table.add_row("gated", percent(found["accuracy"]), percent(found["skipped"]), percent(found["macs"]))
    return table


def gate(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="CKPT", help="Weights of torch.save or safetensors, of which no code runs, or a checkpoint of ours."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            metavar="DIR",
            help="Folder that holds the data: train/CLASS and test/CLASS, or CIFAR's files.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The checkpoint to write; an interrupted run's state lies beside it."
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MODULE:FUNCTION",
            help="What constructs the network, of files that dsn convert does not know.",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="macs=SHARE|latency=SHARE",
            help="Mean MACs of an image, of the network's; or time, by what each unit takes on this machine.",
        ),
    ] = "macs=0.6",
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of that function; may be repeated.")
    ] = None,
    units: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME", help="What may be skipped: auto (residual units), or names and patterns with commas."
        ),
    ] = "auto",
    gate_kind: Annotated[str, typer.Option(metavar="pooled|mlp|recurrent", help="What decides.")] = "pooled",
    kind: KindOption = None,
    task: Annotated[str, typer.Option(metavar="coarse|fine", help="Of data with two tasks: whose classes.")] = "fine",
    image_size: Annotated[
        int | None, typer.Option(min=1, max=MANY, help="Of folders of images, in pixels; the network's, or 224.")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="M,M,M", help="What its images are normalised by; if not given, what is known of it, or the data's."
        ),
    ] = None,  # fmt: skip
    std: Annotated[str | None, typer.Option(metavar="S,S,S", help="Likewise; given with --mean.")] = None,
    epochs: Annotated[int, typer.Option(min=1, max=MANY, help="Passes over the training images.")] = 8,
    iterations: Annotated[int | None, typer.Option(min=1, max=MANY, help="Steps, instead of --epochs.")] = None,
    lr: Annotated[float, typer.Option(callback=finite, help="Falls along a cosine; gates learn at twice that.")] = 0.05,
    batch: Annotated[int, typer.Option("--batch", "-b", min=2, max=MANY, help=BATCH)] = 128,
    distillation: Annotated[
        float, typer.Option(min=0, callback=finite, help="Weight of the answers of the network as it was given.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=SEEDS, help="Of the order of images and of the gates' noise.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run of the same command.")] = True,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="What computes.")] = "cpu",
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Teach a trained network of yours to skip units, image by image, within a share of its MACs.

    Gates begin open, so that training begins with the network as it was given. A unit is computed for the images that
    run it alone, so that steps become faster as gates shut.
    """
    check_writable(json, weights=False)
    out = _named(out)
    check_writable(out)
    word, share = _share(target)
    costs_file = out.with_suffix(".costs.json") if word == "latency" else None
    check_writable(None if costs_file is None else str(costs_file), weights=False)
    if not data.is_dir():
        raise UserError(f"data folder is {data}; expected an existing folder that holds images")
    chosen = kind or told_kind(data)
    if chosen is None:
        raise UserError(
            f"the names in {data} do not tell what data it holds: choose with --kind; pictures lie in train/CLASS and "
            "test/CLASS"
        )
    options = json_format.loads(json_format.dumps(parse_options(option or [])))  # as a checkpoint keeps them
    set_threads(threads)
    given = given_network(weights, arch, options)
    normalisation = given_normalisation(mean, std) or given.normalisation
    told = _told(given, normalisation, chosen)
    if told and is_first():
        console(stderr=True).print(told, soft_wrap=True)
    length = {"epochs": epochs} if iterations is None else {"iterations": iterations}
    recipe = _recipe(
        name=out.stem,
        model=given.arch,
        task=task,
        seed=seed,
        options=given.options,
        data={"kind": chosen, "options": _data_options(chosen, given, image_size, normalisation)},
        train={**length, "batch": batch, "lr": lr, "clip": 2.0, "compute": "selected"},
        gating={"weights": str(weights), "units": split(units), "kind": gate_kind},
        policy={
            "noise": 1.0,
            "cost": _COST,
            "target": share,
            "costs": None if costs_file is None else str(costs_file),
            "distillation": distillation,
            "teacher": str(weights) if distillation else None,
        },
    )

    def make(train_set: CoarseFineDataset) -> torch.nn.Module:
        images = train_set.batch(torch.arange(min(_TIMED, len(train_set))))[0]
        own = given.options
        if given.arch == ZOO and images.shape[2] != own["image_size"]:
            own = {**own, "image_size": images.shape[2]}
        network, own, fresh = fitted(given.network, given.arch, own, _count(train_set, task))
        if fresh and distillation:
            raise UserError(
                f"--distillation is of answers of {weights}, which has other classes than the data; leave it out"
            )
        if fresh and is_first():
            told = f"the data has {_count(train_set, task)} classes, {weights} another number: {fresh} begin anew"
            console(stderr=True).print(f"note: {told}", soft_wrap=True)
        example = images[:1]
        chosen_units = "auto" if recipe.gating.units == ("auto",) else recipe.gating.units
        gated, report = gate_constructed(network, given.arch, own, example, chosen_units, recipe.gating.kind)
        gated.fresh_classifier = bool(fresh)
        _check_fits(gated.config.classes, train_set, task)
        costs = _costs(gated, images, costs_file, resume and out.with_suffix(".state").exists())
        least, of = costs.fixed / costs.dense, "MACs are" if costs_file is None else "time is"
        if share <= least:
            raise UserError(
                f"target is {target}, but {least:.3f} of the {of} left with every unit skipped; "
                "choose a larger one, or more --units"
            )
        if is_first():
            console(stderr=True).print(str(report), soft_wrap=True)
        return gated

    from dsn_models.training import train as run  # only here: it needs tensorboard

    try:
        checkpoint = run(recipe, data, out.absolute().parent, resume=resume, device=device, network=make)
    except KeyboardInterrupt:
        if is_first() and out.with_suffix(".state").exists():
            told = f"the state is in {out.with_suffix('.state')}; the same command goes on from there"
            console(stderr=True).print(told, soft_wrap=True)
        raise
    if not is_first():
        return
    facts = checkpoints.read_metadata(checkpoint)
    told = told_alike(facts["test"][task].get("ran", []))
    if told:
        console(stderr=True).print(told, soft_wrap=True)
    if json is not None:
        write_json({"schema": 1, "checkpoint": str(out), **facts}, json)
        return
    shown = console()
    shown.print(_results(facts, task))
    shown.print(reached(target, facts, task), soft_wrap=True)
    leave = f"; other commands take it with --arch {arch}" if arch else ""
    shown.print(f"{out}: {facts['images_seen']} images in {facts['seconds']:.0f} s{leave}", soft_wrap=True)


def _named(out: Path) -> Path:
    """With the suffix of a checkpoint.

    Raises:
        UserError: it has that of another file of weights, or is no name of a run.
    """
    if out.suffix in _OTHER:
        raise UserError(f"--out is {out}; expected a name that ends in .safetensors, or has no ending")
    out = out if out.suffix == ".safetensors" else out.with_name(f"{out.name}.safetensors")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", out.stem):
        raise UserError(f"--out is {out}; expected a name of letters, digits, points, dashes and underscores")
    return out


def _told(given: Given, normalisation: Normalisation | None, kind: str) -> str:
    """What was recognised in a file, and how its images are normalised."""
    if not given.told:
        return ""
    if normalisation is None:
        return f"{given.told}; normalisation not known, so that of {kind} data (--mean and --std give another)"
    numbers = " and std ".join(" ".join(f"{x:g}" for x in xs) for xs in (normalisation.mean, normalisation.std))
    return f"{given.told}; normalised by mean {numbers} ({normalisation.source})"


def reached(target: str, facts: dict[str, Any], task: str) -> str:
    """What a run reached of its target and, where it missed, what would help."""
    word, share = _share(target)
    counted = facts["test"][task]["macs"] if word == "macs" else facts["history"][-1]["latency"]
    found = f"target {target}: {percent(counted)} of the {'MACs' if word == 'macs' else 'time'}"
    if counted < share - _BELOW:
        return f"{found}, reached, and more than that; dsn sweep CKPT --budget {target} opens gates where that helps"
    if counted <= share + _MISSED:
        return f"{found}, reached"
    return f"{found}, missed; more --epochs help, and a higher --lr"


def told_alike(ran: Sequence[float]) -> str:
    """A note where gates decide nothing for an image of its own; empty elsewhere.

    Args:
        ran: of each gate, the fraction of the images for which it was open.
    """
    if not ran or not all(part in (0, 1) for part in ran):
        return ""
    return (
        f"note: every gate does the same for all test images: {ran.count(0)} of {len(ran)} units are left out for "
        "good, the others always run; the saving is real, but no image gets a path of its own"
    )


def _count(data: CoarseFineDataset, task: str) -> int:
    return data.coarse_classes if task == "coarse" else data.fine_classes


def _check_fits(classes: int, data: CoarseFineDataset, task: str) -> None:
    """Refuses data of other classes than the network's.

    Raises:
        UserError: their number differs.
    """
    counts = {"coarse": data.coarse_classes, "fine": data.fine_classes}
    if counts[task] != classes:
        other = [name for name, count in counts.items() if count == classes]
        todo = f"choose --task {other[0]}" if other else "choose other data, or give --option what sets the number"
        which = f"{task} ones" if other else "classes"
        raise UserError(f"the network tells {classes} classes apart, the data has {counts[task]} {which}; {todo}")
