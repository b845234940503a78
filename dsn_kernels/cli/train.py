"""``dsn train``: a recipe to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsn_models import UserError, checkpoints
from dsn_models.distributed import is_first

from .common import (
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

if TYPE_CHECKING:
    from dsn_models.training.recipe import Recipe


def _override(recipe: Recipe, **train_options: Any) -> Recipe:
    """The recipe with some values of its ``[train]`` section replaced; None leaves one as it is."""
    from pydantic import ValidationError

    content = recipe.model_dump()
    content["train"] |= {key: value for key, value in train_options.items() if value is not None}
    if train_options.get("epochs") is not None:
        content["train"]["iterations"] = None
    try:
        return type(recipe).model_validate(content)
    except ValidationError as error:
        raise UserError(f"recipe {recipe.name}: {error.errors()[0]['msg']}") from error


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file (TOML) or the name of a shipped recipe.")],
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Output folder; runs/RECIPE if not given.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run in the output folder.")] = True,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
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
    from dsn_models.training.recipe import load_recipe  # here, because --help needs no recipe and no pydantic

    chosen = _override(load_recipe(recipe), epochs=epochs, ungated_epochs=ungated_epochs, batch=batch, lr=lr)
    if seed is not None:
        chosen = chosen.model_copy(update={"seed": seed})
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
