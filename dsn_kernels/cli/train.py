"""``dsn train``: a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsn_models import checkpoints
from dsn_models.distributed import is_first

from .common import (
    ASSETS,
    BATCH,
    SEEDS,
    DataOption,
    JsonOption,
    ThreadsOption,
    check_writable,
    console,
    set_threads,
    write_json,
)
from .evaluate import results_table


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML) or the name of a shipped recipe.")],
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Output folder; runs/RECIPE if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run in the output folder.")] = True,
    init: Annotated[
        str | None, typer.Option(metavar="CKPT", help="The network to begin with, instead of the recipe's.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of the recipe, such as train.lr=0.01; may be repeated."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Instead of the recipe's; its phases change in proportion.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps, instead of the recipe's length.")] = None,
    ungated_epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", "-b", help=f"{BATCH[:-1]}, instead of the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=SEEDS, help="Instead of the recipe's.")] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="What computes.")] = "cpu",
    threads: ThreadsOption = None,
    json: JsonOption = None,
) -> None:
    """Train a reference model; writes a safetensors checkpoint.

    Under ``torchrun --nproc-per-node N --no-python dsn train ...`` the processes share each batch.
    """
    check_writable(json, weights=False)
    set_threads(threads)
    # Here, because --help needs no recipe and no pydantic.
    from dsn_models.training.overriding import find_checkpoints, override, parse_setting
    from dsn_models.training.recipe import load_recipe

    settings = dict(parse_setting(setting) for setting in set_ or [])
    given = {
        "train.epochs": epochs,
        "train.iterations": iterations,
        "train.ungated_epochs": ungated_epochs,
        "train.batch": batch,
        "train.lr": lr,
        "seed": seed,
    }
    settings |= {key: value for key, value in given.items() if value is not None}
    if init is not None:
        settings["init"] = str(Path(init).absolute()) if Path(init).is_file() else init
    chosen = override(load_recipe(recipe), settings)
    beside = Path(recipe).parent if Path(recipe).is_file() else None
    chosen = find_checkpoints(chosen, beside, sorted(ASSETS.glob("*.safetensors")))
    from dsn_models.training import train as run  # only here: it needs tensorboard

    checkpoint = run(chosen, data, out or Path("runs") / chosen.name, resume=resume, device=device)
    if not is_first():
        return
    facts = checkpoints.read_metadata(checkpoint)
    if json is not None:
        write_json({"schema": 1, "checkpoint": str(checkpoint), **facts}, json)
        return
    out_console = console()
    out_console.print(results_table(facts["test"]))
    out_console.print(f"{checkpoint}: {facts['images_seen']} images in {facts['seconds']:.0f} s", soft_wrap=True)
