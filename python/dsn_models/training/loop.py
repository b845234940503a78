"""The training loop. Dual Skipping Networks, section 4, implementation details."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from .. import zoo
from ..checkpoints import load, save
from ..data import CoarseFineDataset, open_dataset
from ..dual_skipping import BRANCHES, DualSkippingNetwork
from ..errors import UserError
from ..gates import set_slope
from .calibration import calibrate_gates
from .evaluation import all_open, evaluate
from .losses import GateRecorder, auxiliary_loss, freeze_gates, open_gates, sparsity_loss
from .recipe import OptimiserSection, Recipe, load_recipe
from .state import RunState, restore_state, save_state


def phase_of(section: OptimiserSection, epoch: int) -> Literal["ungated", "gated", "settled"]:
    """The phase that an epoch, counted from 0, belongs to."""
    if epoch < section.ungated_epochs:
        return "ungated"
    return "gated" if epoch < section.epochs - section.settled_epochs else "settled"


def learning_rate(section: OptimiserSection, epoch: int, fraction: float) -> float:
    """``lr / 2 (1 + cos(pi t))``, t the finished part of the phase: ungated ``lr``, ``gated_lr``, then ``settled_lr``.

    ``fraction`` is the finished part of ``epoch``, in [0, 1).
    """
    settled = section.epochs - section.settled_epochs
    bounds = {"ungated": (0, section.ungated_epochs), "gated": (section.ungated_epochs, settled)}
    first, last = bounds.get(phase_of(section, epoch), (settled, section.epochs))
    gated_lr = section.gated_lr or section.lr
    base = {"ungated": section.lr, "gated": gated_lr}.get(phase_of(section, epoch), section.settled_lr or gated_lr)
    return base / 2 * (1 + math.cos(math.pi * (epoch + fraction - first) / (last - first)))


def _make_optimiser(model: nn.Module, section: OptimiserSection) -> torch.optim.SGD:
    """Weight decay is for the weights of convolutions and linear layers, not for biases and batch norms."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.SGD(
        [{"params": decayed, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=section.lr,
        momentum=section.momentum,
        nesterov=True,
    )


def _dual_loss(
    model: DualSkippingNetwork, images: Tensor, labels: dict[str, Tensor], recipe: Recipe, phase: str
) -> tuple[Tensor, dict[str, float]]:
    with GateRecorder(model) as recorder:
        outputs = model(images, forced_gates=all_open(model, len(images)) if phase == "ungated" else None)
    loss = torch.zeros(())
    facts: dict[str, float] = {}
    for name, logits, target in zip(BRANCHES, outputs, recipe.gates.target, strict=True):
        entropy = F.cross_entropy(logits, labels[name])
        facts[f"{name}/loss"] = entropy.item()
        facts[f"{name}/accuracy"] = (logits.argmax(1) == labels[name]).float().mean().item()
        loss = loss + entropy
        if phase != "ungated":
            facts[f"{name}/skipped"] = 1 - model.last_gates[name].float().mean().item()
        if phase == "gated":
            multipliers = recorder.multipliers[name]
            if recipe.gates.auxiliary:
                loss = loss + recipe.gates.auxiliary * auxiliary_loss(recorder.logits[name], multipliers)
            if recipe.gates.sparsity:
                loss = loss + recipe.gates.sparsity * sparsity_loss(multipliers, target)
            values = torch.stack(multipliers).detach()
            facts[f"{name}/undecided"] = ((values > 0) & (values < 1)).float().mean().item()
    return loss, facts


def _single_loss(
    model: nn.Module, images: Tensor, labels: dict[str, Tensor], task: str
) -> tuple[Tensor, dict[str, float]]:
    logits = model(images)
    loss = F.cross_entropy(logits, labels[task])
    accuracy = (logits.argmax(1) == labels[task]).float().mean().item()
    return loss, {f"{task}/loss": loss.item(), f"{task}/accuracy": accuracy}


def _train_epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    dataset: CoarseFineDataset,
    recipe: Recipe,
    state: RunState,
    bar: Progress,
) -> dict[str, float]:
    """One epoch, its order of images a function of seed and epoch alone. Returns the means over its steps."""
    model.train()
    dataset.set_epoch(state.epoch)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + state.epoch))
    steps = max(len(dataset) // recipe.train.batch, 1)
    phase = phase_of(recipe.train, state.epoch)
    totals: dict[str, float] = {}
    started = time.monotonic()
    task = bar.add_task("", total=steps, loss=math.nan)
    for i in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe.train, state.epoch, i / steps)
        images, coarse, fine = dataset.batch(order[i * recipe.train.batch : (i + 1) * recipe.train.batch])
        images, labels = images.contiguous(memory_format=torch.channels_last), {"coarse": coarse, "fine": fine}
        if isinstance(model, DualSkippingNetwork):
            loss, facts = _dual_loss(model, images, labels, recipe, phase)
        else:
            loss, facts = _single_loss(model, images, labels, recipe.task)
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.train.clip)
        if not bool(norm.isfinite()):
            raise UserError(f"training diverged in epoch {state.epoch + 1}: gradient norm {norm.item()}; lower the lr")
        optimiser.step()
        state.step += 1
        for key, value in facts.items():
            totals[key] = totals.get(key, 0.0) + value / steps
        epoch = f"epoch {state.epoch + 1}/{recipe.train.epochs}"
        bar.update(task, advance=1, description=epoch, loss=loss.item())
    bar.remove_task(task)
    state.seconds += time.monotonic() - started
    return totals


def _check(recipe: Recipe, model: nn.Module, dataset: CoarseFineDataset) -> None:
    dual = isinstance(model, DualSkippingNetwork)
    if dual != (recipe.task == "both"):
        expected = "'both'" if dual else "'coarse' or 'fine'"
        raise UserError(f"recipe {recipe.name}: task is {recipe.task!r}; {recipe.model} takes {expected}")
    available = {"coarse": dataset.coarse_classes, "fine": dataset.fine_classes}
    wanted = dict(zip(BRANCHES, model.config.classes, strict=True)) if dual else {recipe.task: model.config.classes}  # type: ignore[union-attr, arg-type]
    for name, count in wanted.items():
        if count != available[name]:
            raise UserError(
                f"recipe {recipe.name}: the model has {count} {name} classes, the data {available[name]}; "
                "set options.classes"
            )


def _initialise(model: nn.Module, recipe: Recipe) -> None:
    assert recipe.init is not None
    start = load(recipe.init)
    if start.config != model.config:
        raise UserError(f"init {recipe.init} is a {start.config}; the recipe's model is {model.config}")
    model.load_state_dict(start.state_dict())


def _scalar_writer(folder: Path, epoch: int, console: Console) -> Any:
    """TensorBoard's writer, or None where TensorBoard is not installed, said in one line."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.print("TensorBoard is not installed, no log for it is written (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder), purge_step=epoch)


def _describe(totals: dict[str, float]) -> str:
    return "  ".join(f"{key} {value:.4f}" for key, value in totals.items())


def train(
    recipe: Recipe | str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
) -> Path:
    """Trains a reference model and writes ``out/NAME.safetensors``, NAME being the recipe's.

    After each epoch the complete state goes to ``out/NAME.state``, and scalars to ``out/tensorboard`` if TensorBoard is
    installed. An interrupted run
    (Ctrl-C raises ``KeyboardInterrupt`` after the files are closed) is resumed by the same call and ends at the same
    weights as one that was not interrupted; the epoch in which it stopped is done again. Runs on the CPU, with as many
    threads as ``torch.get_num_threads()``.

    Args:
        recipe: a recipe, the name of a shipped one, or its file.
        data: the folder of the recipe's data, None for data that needs none.
        out: output folder, made if missing.
        resume: go on from ``out/NAME.state`` if there is one; else start anew.
        progress: print a progress bar and a line per epoch to stderr.

    Returns:
        The path of the checkpoint; its metadata holds the recipe, the seconds of training and the test results.

    Raises:
        UserError: recipe, data or output folder do not fit, or training diverges.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    out = Path(out)
    part = recipe.data
    train_set = open_dataset(part.kind, data, True, **_images(part.train_images), **part.options)
    test_set = open_dataset(part.kind, data, False, **_images(part.test_images), **part.options)
    torch.manual_seed(recipe.seed)
    model = zoo.create(recipe.model, **recipe.options).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check(recipe, model, train_set)
    if recipe.init is not None:
        _initialise(model, recipe)
    optimiser = _make_optimiser(model, recipe.train)
    state, state_path = RunState(history=[]), out / f"{recipe.name}.state"
    if resume and state_path.is_file():
        state = restore_state(state_path, recipe, model, optimiser)
    console = Console(stderr=True, quiet=not progress)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        out.mkdir(parents=True, exist_ok=True)
        writer = _scalar_writer(out / "tensorboard", state.epoch, console)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another output folder") from error
    bar = Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console, transient=True)
    with bar, contextlib.ExitStack() as stack:
        if writer is not None:
            stack.callback(writer.close)
        while state.epoch < recipe.train.epochs:
            gated_epoch = state.epoch - recipe.train.ungated_epochs
            if isinstance(model, DualSkippingNetwork) and gated_epoch >= 0:
                if gated_epoch == 0 and recipe.gates.begin == "open":
                    open_gates(model)
                elif gated_epoch == 0 and recipe.gates.begin == "calibrated":
                    calibrate_gates(model, train_set, recipe.gates.target)
                freeze_gates(model, phase_of(recipe.train, state.epoch) == "settled")
                set_slope(model, recipe.gates.slope + recipe.gates.slope_step * gated_epoch)
            totals = _train_epoch(model, optimiser, train_set, recipe, state, bar)
            if writer is not None:
                for key, value in totals.items():
                    writer.add_scalar(key, value, state.epoch)
                writer.flush()
            assert state.history is not None
            state.history.append(totals)
            state.epoch += 1
            save_state(state_path, recipe, model, optimiser, state)
            console.print(f"epoch {state.epoch}/{recipe.train.epochs}  {state.seconds:.0f} s  {_describe(totals)}")
    model.eval()
    results = evaluate(model, test_set, task=recipe.task)
    console.print_json(data=results)
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "images_seen": state.step * recipe.train.batch,
        "seconds": round(state.seconds, 1),
        "threads": torch.get_num_threads(),
        "test": results,
    }
    return save(model, out / f"{recipe.name}.safetensors", **facts)


def _images(count: int | None) -> dict[str, int]:
    return {} if count is None else {"images": count}
