"""The training loop: what all families share. What they do not is in ``dsn_models.training.objectives``."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import distributed, zoo
from ..checkpoints import check, read_metadata, save
from ..data import CoarseFineDataset, open_dataset
from ..dual_skipping import BRANCHES
from ..errors import UserError
from ..selection import set_compute
from .fitting import data_options, model_options
from .interruption import BetweenSteps, Interrupted
from .objectives import Objective, make_objective
from .recipe import Recipe, load_recipe, told_task
from .schedule import Span, make_optimiser, make_scheduler, spans
from .state import RunState, restore_state, save_state

# From the training data to the network that a recipe of no zoo model trains.
MakeNetwork = Callable[[CoarseFineDataset], nn.Module]


class _Step(nn.Module):
    """What DistributedDataParallel wraps: the way from images to the loss, so that objectives see the bare model."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: Tensor, labels: dict[str, Tensor], phase: str) -> tuple[Tensor, dict[str, float]]:
        return self.objective.loss(self.model, images, labels, phase)


def _known_device(device: str | torch.device) -> torch.device:
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError):
        known = None
    if known is None or known.type not in ("cpu", "cuda"):
        raise UserError(f"device is {str(device)!r}; training runs on 'cpu', 'cuda' or 'cuda:N'")
    if known.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch sees no GPU here; train on the cpu")
    if known.type == "cuda" and (known.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device is '{known}'; this machine has {torch.cuda.device_count()} CUDA devices")
    return known


def _memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last, which is faster; but there oneDNN on AVX2 (seen in 3.12, of torch 2.13) writes beyond the gradient
    of a 1x1 convolution with a stride and fewer than 8 input channels."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    narrow = any(c.kernel_size == (1, 1) and c.stride != (1, 1) and c.in_channels < 8 for c in convolutions)
    return torch.contiguous_format if narrow else torch.channels_last


class _Run:
    """One training run: everything that the steps of its epochs need."""

    def __init__(
        self, recipe: Recipe, train_set: CoarseFineDataset, device: torch.device, make: MakeNetwork | None
    ) -> None:
        self.recipe, self.train_set, self.device = recipe, train_set, device
        torch.manual_seed(recipe.seed)
        made = zoo.create(recipe.model, **model_options(recipe, train_set)) if make is None else make(train_set)
        self.model: nn.Module = made
        self.objective = make_objective(recipe, self.model)
        self.objective.check(self.model, train_set)
        self.objective.initialise(self.model)
        check(self.model)  # what cannot be saved is refused now, not after the last epoch
        if recipe.train.compute == "selected" and distributed.world_size() > 1:
            raise UserError(
                f"recipe {recipe.name}: train.compute 'selected' is for one process, since batch norms gather as many "
                "images from each; set it to 'masked'"
            )
        set_compute(self.model, recipe.train.compute)
        network: Any = self.model  # torch's annotations of ``to`` leave the memory format out
        self.memory_format = _memory_format(self.model)
        self.model = network.to(device, memory_format=self.memory_format)
        self.model = distributed.share_batch_norms(self.model)
        if recipe.train.batch % distributed.world_size():
            raise UserError(
                f"recipe {recipe.name}: {distributed.world_size()} processes cannot share a batch of "
                f"{recipe.train.batch} evenly; set train.batch to a multiple"
            )
        self.optimiser = make_optimiser(self.model, self.objective)
        self.steps_per_epoch = max(len(train_set) // recipe.train.batch, 1)
        self.spans = spans(self.objective, self.steps_per_epoch)
        if recipe.train.warmup > self.spans[0].last:
            raise UserError(
                f"recipe {recipe.name}: train.warmup is {recipe.train.warmup} steps; its first phase has "
                f"{self.spans[0].last}"
            )
        self.state = RunState()

    @property
    def finished(self) -> bool:
        return self.state.step >= self.spans[-1].last

    def span(self) -> Span:
        """The phase that the next step belongs to."""
        return next(span for span in self.spans if self.state.step < span.last)

    def test(self, dataset: CoarseFineDataset) -> None:
        """Adds the accuracies on ``dataset`` to what the last epoch measured, as ``test/TASK/accuracy``."""
        self.model.eval()
        results = self.objective.evaluate(self.model, dataset)
        found = {f"test/{task}/accuracy": results[task]["accuracy"] for task in BRANCHES if task in results}
        self.state.history[-1].update(found)

    def _batch(self, order: Tensor, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's rows of the i-th batch."""
        batch = self.recipe.train.batch
        images, coarse, fine = self.train_set.batch(distributed.own_rows(order[i * batch : (i + 1) * batch]))
        labels = {"coarse": coarse.to(self.device), "fine": fine.to(self.device)}
        return images.to(self.device).contiguous(memory_format=self.memory_format), labels

    def epoch(self, bar: Progress, interruption: BetweenSteps) -> dict[str, float]:
        """One epoch, its order of images a function of seed and epoch alone. Returns the means over its steps.

        Raises:
            Interrupted: by Ctrl-C between two steps, where the objective lets the run go on within an epoch.
        """
        recipe, state, dataset = self.recipe, self.state, self.train_set
        started = time.monotonic()
        span = self.span()
        dataset.set_epoch(state.epoch)
        if state.step == span.first:
            self.objective.begin_phase(self.model, dataset, span.phase.name)
        self.objective.begin_epoch(self.model, dataset, span.phase.name, state.epoch)
        scheduler = make_scheduler(self.optimiser, recipe.train, span, self.steps_per_epoch, state.step - span.first)
        self.model.train()
        step: nn.Module = _Step(self.model, self.objective)
        if distributed.world_size() > 1:  # anew each epoch, since an objective may freeze parameters
            step = DistributedDataParallel(step, broadcast_buffers=False, find_unused_parameters=True)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + state.epoch)
        order = torch.randperm(len(dataset), generator=generator)
        steps = min(self.steps_per_epoch, span.last - (state.step - state.position))
        totals, begun = state.totals, state.position
        state.totals, state.position = {}, 0
        epochs = math.ceil(self.spans[-1].last / self.steps_per_epoch)
        task = bar.add_task(f"epoch {state.epoch + 1}/{epochs}", total=steps, completed=begun, loss=math.nan)
        for i in range(begun, steps):
            images, labels = self._batch(order, i)
            self.objective.progress = (state.step - span.first) / (span.last - span.first)
            loss, facts = step(images, labels, span.phase.name)
            self.optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.train.clip or math.inf)
            if not bool(norm.isfinite()):
                raise UserError(
                    f"training diverged in epoch {state.epoch + 1}: gradient norm {norm.item()}; lower the lr"
                )
            self.optimiser.step()
            scheduler.step()
            state.step += 1
            for key, value in facts.items():
                totals[key] = totals.get(key, 0.0) + value / steps
            bar.update(task, advance=1, loss=loss.item())
            if interruption.asked and i + 1 < steps:
                state.position, state.totals = i + 1, totals
                state.seconds += time.monotonic() - started
                raise Interrupted
        bar.remove_task(task)
        state.epoch += 1
        state.seconds += time.monotonic() - started
        totals = distributed.average(totals)
        state.history.append(totals)
        return totals


def _scalar_writer(folder: Path, epoch: int, console: Console) -> Any:
    """TensorBoard's writer, or None where TensorBoard is not installed, said in one line."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        console.print("TensorBoard is not installed, no log for it is written (pip install tensorboard)")
        return None
    return SummaryWriter(str(folder), purge_step=epoch)


def _describe(totals: dict[str, float], task: str) -> str:
    """In a line; one task goes without its name."""
    return "  ".join(f"{key.removeprefix(f'{task}/')} {value:.4f}" for key, value in totals.items())


def train(
    recipe: Recipe | str | Path,
    data: str | Path | None,
    out: str | Path,
    *,
    resume: bool = True,
    progress: bool = True,
    device: str | torch.device = "cpu",
    network: MakeNetwork | None = None,
) -> Path:
    """Trains a reference model and writes ``out/NAME.safetensors``, NAME being the recipe's.

    After each epoch the complete state goes to ``out/NAME.state``, and scalars to ``out/tensorboard`` if TensorBoard is
    installed. An interrupted run (Ctrl-C raises ``KeyboardInterrupt`` after the files are closed) is resumed by the
    same call and ends at the same weights as one that was not interrupted. The epoch in which it stopped is done again,
    but for a network of the user's: there Ctrl-C keeps the state of the step at hand too.

    Under ``torchrun`` the processes share each batch: the result is that of one process, up to rounding. The first one
    writes the files.

    Args:
        recipe: a recipe, the name of a shipped one, or its file.
        data: the folder of the recipe's data, None for data that needs none.
        out: output folder, made if missing.
        resume: go on from ``out/NAME.state`` if there is one; else start anew.
        progress: print a progress bar and a line per epoch to stderr.
        device: "cpu" (as many threads as ``torch.get_num_threads()``) or "cuda".
        network: makes the network that is trained, a family's or a gated one that knows its constructor, in place of
            the recipe's zoo model; told the training data. A resumed run makes it anew.

    Returns:
        The path of the checkpoint; its metadata holds the recipe, the seconds of training and the test results.

    Raises:
        UserError: recipe, data, device or output folder do not fit, or training diverges.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    with distributed.process_group(_known_device(device)) as own_device:
        return _train(recipe, data, Path(out), resume, progress, own_device, network)


def _train(
    recipe: Recipe,
    data: str | Path | None,
    out: Path,
    resume: bool,
    progress: bool,
    device: torch.device,
    network: MakeNetwork | None,
) -> Path:
    if network is None:
        recipe = recipe.model_copy(update={"task": told_task(recipe)})
    part, options = recipe.data, data_options(recipe) if network is None else recipe.data.options
    options = {**options, "task": recipe.task}
    held: dict[str, Any] = {} if part.validation is None else {"validation": part.validation}
    train_set = open_dataset(part.kind, data, True, **_images(part.train_images), **held, **options)
    learned = train_set.description(recipe.task)
    images = _images(part.train_images if held else part.test_images)  # of which the held out ones are a part
    test_set = open_dataset(part.kind, data, False, **images, **held, like=learned, **options)
    run = _Run(recipe, train_set, device, network)
    state_path = out / f"{recipe.name}.state"
    if resume and state_path.is_file():
        run.state = restore_state(state_path, recipe, run.model, run.optimiser)
    first = distributed.is_first()
    console = Console(stderr=True, quiet=not (progress and first))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    writer = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        if first:
            writer = _scalar_writer(out / "tensorboard", run.state.epoch, console)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another output folder") from error
    for note in dict.fromkeys([*train_set.notes, *test_set.notes, *run.objective.notes]):
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    bar = Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console, transient=True)
    with bar, contextlib.ExitStack() as stack:
        if writer is not None:
            stack.callback(writer.close)
        while not run.finished:
            try:
                with BetweenSteps(
                    run.objective.resumes_within_epochs and distributed.world_size() == 1
                ) as interruption:
                    totals = run.epoch(bar, interruption)
            except Interrupted:
                save_state(state_path, recipe, run.model, run.optimiser, run.state)
                raise
            check(run.model)
            state = run.state
            if recipe.train.curve:
                run.test(test_set)
            if writer is not None:
                for key, value in totals.items():
                    writer.add_scalar(key, value, state.epoch - 1)
                writer.flush()
            if first:
                save_state(state_path, recipe, run.model, run.optimiser, state)
            console.print(f"epoch {state.epoch}  {state.seconds:.0f} s  {_describe(totals, recipe.task)}")
            if interruption.asked:
                raise KeyboardInterrupt
    checkpoint = out / f"{recipe.name}.safetensors"
    if first:
        run.model.eval()
        results = run.objective.evaluate(run.model, test_set)
        idle = never_skipped(run.state.history)
        if idle:
            told = "policy.cost, gates.sparsity, skipping.penalty and gater.sparsity make gates shut"
            console.print(
                f"warning: {' and '.join(idle)} skipped nothing in any step; {told}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
        facts: dict[str, Any] = {
            "recipe": recipe.model_dump(mode="json"),
            "data": learned,
            "images_seen": run.state.step * recipe.train.batch,
            "seconds": round(run.state.seconds, 1),
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
            "history": run.state.history,
            "tested_on": "validation" if held else "test",
            "test": results,
            **_start(recipe),
        }
        save(run.model, checkpoint, **facts)
    distributed.wait_for_all()
    return checkpoint


def never_skipped(history: list[dict[str, float]]) -> list[str]:
    """The names of the gates that were open for every image of every step in which gates decided.

    Args:
        history: by epoch, the means of what objectives measure; ``NAME/skipped`` is told where gates decide.
    """
    told: dict[str, float] = {}
    for facts in history:
        for key, value in facts.items():
            name, _, what = key.rpartition("/")
            if what == "skipped":
                told[name] = max(told.get(name, 0.0), value)
    return [name for name, most in told.items() if most == 0]


def _start(recipe: Recipe) -> dict[str, Any]:
    """Which network the run began with, and its test results, where its checkpoint has some."""
    if recipe.init is None:
        return {}
    return {"start": {"checkpoint": Path(recipe.init).name, "test": read_metadata(recipe.init).get("test")}}


def _images(count: int | None) -> dict[str, Any]:
    return {} if count is None else {"images": count}
